//! Child processes: this very test binary, run again as one of the parts that its test `child` plays.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A child that tells what it did, a line each, and can be told something: to go on, say. It is killed
/// if it is dropped before its end.
pub struct Part {
    child: Child,
    tell: Option<ChildStdin>,
    told: Lines<BufReader<ChildStdout>>,
}

impl Part {
    /// `path` is where the child finds what it works on.
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
        let told = BufReader::new(child.stdout.take().unwrap()).lines();
        let tell = child.stdin.take();
        Self { child, tell, told }
    }

    /// The next line that the child told; `None` once it ended. Waits for it.
    pub fn next(&mut self) -> Option<String> {
        loop {
            // What the test harness prints around the child stands on no line of ours, or before it.
            let line = self.told.next()?.unwrap();
            if let Some((_, told)) = line.split_once("@ ") {
                return Some(told.to_owned());
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
        self.hand("go on");
    }

    /// Gives the child a line to read.
    pub fn hand(&mut self, line: &str) {
        writeln!(self.tell.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What the child can tell the parent's end by: once this is dropped, there is no more to read.
    pub fn leash(&mut self) -> ChildStdin {
        self.tell.take().unwrap()
    }

    /// Kills it where it stands, and reads what it had told until then.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Lets it come to its end, which must be a good one, and reads the rest of what it told.
    #[track_caller]
    pub fn finish(mut self) -> Vec<String> {
        drop(self.tell.take());
        let rest = std::iter::from_fn(|| self.next()).collect();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the child ended with {status}: {rest:?}");
        rest
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Nothing is done about one that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Tells the parent something. Not by `println!`, which could be captured.
pub fn tell(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("@ {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Waits until the parent says to go on; whether it did, and not merely went away.
pub fn wait_for_parent() -> bool {
    std::io::stdin()
        .lock()
        .read_line(&mut String::new())
        .unwrap()
        > 0
}

/// How often to do something: more when asked for by `KEYWARD_LONG=1`.
pub fn rounds(short: usize, long: usize) -> usize {
    match std::env::var("KEYWARD_LONG").as_deref() {
        Ok("1") => long,
        _ => short,
    }
}

/// Random numbers that a seed repeats (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.throw() % end as u64) as usize
    }
}
