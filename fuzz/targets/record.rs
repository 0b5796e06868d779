//! The fuzz target `record`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(record);
