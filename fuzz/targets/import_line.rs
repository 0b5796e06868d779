//! The fuzz target `import_line`.

#![cfg_attr(fuzzing, no_main)]

keyward_fuzz::fuzz!(import_line);
