//! The fuzz target `text`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(text);
