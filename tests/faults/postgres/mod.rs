//! Faults that the PostgreSQL store must survive: many concurrent processes, a killed or stopped server, and
//! connections that are cut or become silent.
//!
//! Each child process is this test binary, started again. `KEYWARD_LONG=1` makes the tests run many more
//! rounds.
#![allow(
    unreachable_pub,
    reason = "the modules of one test program share items"
)]

pub(crate) mod child;
mod cut;
mod disturbed;
mod feed;
mod proxy;
mod spread;
mod volume;
