//! Usage of keys: what is counted, the form in which counts are stored, and the judgement of unusual use.
//!
//! Pure: no I/O and no clock.

pub(crate) mod day;
pub(crate) mod outcome;
pub(crate) mod unusual;
