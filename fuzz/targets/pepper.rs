//! The fuzz target `pepper`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(pepper);
