//! The fuzz target `policy`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(policy);
