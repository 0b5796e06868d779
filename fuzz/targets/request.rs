//! The fuzz target `request`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(request);
