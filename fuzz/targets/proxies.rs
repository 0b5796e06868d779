//! The fuzz target `proxies`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(proxies);
