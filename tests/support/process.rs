//! Child processes for tests. A child is this test binary, started again to run only the test `child`.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A child process that reports its steps on stdout and reads lines from the test on stdin. Killed on drop if
/// it is still running.
pub struct ChildProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl ChildProcess {
    /// Starts a child that runs `part`. `path` is the file, folder or database URL for the child.
    pub fn start(part: &str, path: &(impl AsRef<OsStr> + ?Sized), env: &[(&str, String)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .args(["--test-threads", "1"])
            .env("CHILD_PART", part)
            .env("CHILD_PATH", path)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let input = child.stdin.take();
        Self {
            child,
            input,
            output,
        }
    }

    /// Waits for the child's next report. Returns `None` once the child has exited.
    pub fn next(&mut self) -> Option<String> {
        loop {
            // The test harness may print its own lines, or text before a report on the same line.
            let line = self.output.next()?.unwrap();
            if let Some((_, report)) = line.split_once("@ ") {
                return Some(report.to_owned());
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    pub fn expect(&mut self, line: &str) {
        assert_eq!(self.next().as_deref(), Some(line));
    }

    pub fn go_on(&mut self) {
        self.send_line("go on");
    }

    /// Sends a line to the child.
    pub fn send_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Takes the child's stdin. When the returned value is dropped, the child reads end of file, as if its
    /// parent had exited.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.input.take().unwrap()
    }

    /// Kills the child with SIGKILL. Returns the reports that were not read yet.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Closes the child's stdin and waits for a successful exit. Returns the reports that were not read yet.
    #[track_caller]
    pub fn finish(mut self) -> Vec<String> {
        drop(self.input.take());
        let rest = std::iter::from_fn(|| self.next()).collect();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the child ended with {status}: {rest:?}");
        rest
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // `kill` has no effect on a child that has already exited.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a report to the parent. Writes to stdout directly, because the test harness may capture `println!`.
pub fn report(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("@ {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Waits for a line from the parent. Returns `false` if the parent closed the pipe.
pub fn wait_for_parent() -> bool {
    std::io::stdin()
        .lock()
        .read_line(&mut String::new())
        .unwrap()
        > 0
}

/// Returns the number of rounds to run: `long` if `KEYWARD_LONG=1`, otherwise `short`.
pub fn rounds(short: usize, long: usize) -> usize {
    match std::env::var("KEYWARD_LONG").as_deref() {
        Ok("1") => long,
        _ => short,
    }
}

/// A pseudo-random number generator (SplitMix64). The same seed gives the same numbers.
pub struct SeededRandom(pub u64);

impl SeededRandom {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
