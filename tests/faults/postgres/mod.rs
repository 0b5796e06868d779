//! What the database store must survive: many processes at once, a server that is killed or stopped,
//! connections that are cut or fall silent.
//!
//! Children are this binary, run again. `KEYWARD_LONG=1` asks for many more rounds.

pub(crate) mod child;
mod cut;
mod disturbed;
mod feed;
mod proxy;
mod spread;
mod volume;
