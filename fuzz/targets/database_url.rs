//! The fuzz target `database_url`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(database_url);
