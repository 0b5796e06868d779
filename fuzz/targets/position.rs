//! The fuzz target `position`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(position);
