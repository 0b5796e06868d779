//! The fuzz target `token`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(token);
