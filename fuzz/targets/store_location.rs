//! The fuzz target `store_location`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(store_location);
