//! Child processes for tests. A child process is this test binary, started again to run only the test
//! `child`.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A child process, which reports its progress on stdout and reads lines from the test on stdin. Dropping
/// this value kills the process.
pub struct ChildProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl ChildProcess {
    /// Starts a child process that runs `part`. The child process gets `path`, which is a file, a folder, or
    /// the URL of a database.
    pub fn start(part: &str, path: &(impl AsRef<OsStr> + ?Sized), env: &[(&str, String)]) -> Self {
        let own = Command::new(std::env::current_exe().unwrap());
        Self::spawn(own, part, path, env)
    }

    /// Starts a child process that may mount file systems, which only the child can see. Returns `None` on a
    /// machine that does not allow this.
    pub fn with_mounts(part: &str, path: &(impl AsRef<OsStr> + ?Sized)) -> Option<Self> {
        let unshare = || {
            let mut unshare = Command::new("unshare");
            unshare.args(["--map-root-user", "--mount"]);
            unshare
        };
        let allowed = unshare().arg("true").status();
        if !allowed.is_ok_and(|status| status.success()) {
            eprintln!("left out: `unshare --map-root-user --mount` is not allowed here");
            return None;
        }
        let mut own = unshare();
        own.arg(std::env::current_exe().unwrap());
        Some(Self::spawn(own, part, path, &[]))
    }

    fn spawn(
        mut own: Command,
        part: &str,
        path: &(impl AsRef<OsStr> + ?Sized),
        env: &[(&str, String)],
    ) -> Self {
        let mut child = own
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

    /// Waits for the next report of the child process. Returns `None` once the process has exited.
    pub fn next(&mut self) -> Option<String> {
        loop {
            // Not every line is a report, because the test harness prints lines too. A report may also follow
            // such text on the same line.
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

    /// Takes the stdin of the child process. Dropping it ends the input of the child, as if the parent had
    /// exited.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.input.take().unwrap()
    }

    /// Kills the child process with SIGKILL. Returns the reports that the test has not read yet.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Closes the stdin of the child process, and waits until it exits successfully. Returns the reports that
    /// the test has not read yet.
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
        // Killing a process that has already exited does nothing.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a report to the parent. The function writes directly to stdout, because the test harness may capture
/// the output of `println!`.
pub fn report(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("@ {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Waits until the parent sends a line. Returns `false` if the parent has closed the pipe instead.
pub fn wait_for_parent() -> bool {
    std::io::stdin()
        .lock()
        .read_line(&mut String::new())
        .unwrap()
        > 0
}

/// Returns the number of rounds that a test runs: `long` if `KEYWARD_LONG=1` is set, and `short` otherwise.
pub fn rounds(short: usize, long: usize) -> usize {
    match std::env::var("KEYWARD_LONG").as_deref() {
        Ok("1") => long,
        _ => short,
    }
}

/// A pseudo-random number generator (SplitMix64), which returns the same numbers for the same seed.
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
