-- For wrk: every request brings another of the keys that stand in the file PRESENTED.
local requests, last = {}, 0

function init()
  for key in io.lines(os.getenv("PRESENTED")) do
    local headers = { Authorization = "Bearer " .. key }
    requests[#requests + 1] = wrk.format("GET", nil, headers)
  end
  -- Runs do not begin with the same keys.
  math.randomseed(os.time())
  last = math.random(#requests)
end

function request()
  last = last % #requests + 1
  return requests[last]
end

-- Requests that were answered, microseconds, and how many failed.
function done(summary)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("told %d %d %d\n", summary.requests, summary.duration, failed))
end
