//! The fuzz target `audit_line`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(audit_line);
