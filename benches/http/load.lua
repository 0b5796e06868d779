-- A script for wrk: each request presents the next key of the file PRESENTED.
local requests, last = {}, 0

function init()
  for key in io.lines(os.getenv("PRESENTED")) do
    local headers = { Authorization = "Bearer " .. key }
    requests[#requests + 1] = wrk.format("GET", nil, headers)
  end
  -- Each run begins with another key.
  math.randomseed(os.time())
  last = math.random(#requests)
end

function request()
  last = last % #requests + 1
  return requests[last]
end

-- Prints the number of responses, the duration in microseconds, and the number of failures.
function done(summary)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("result %d %d %d\n", summary.requests, summary.duration, failed))
end
