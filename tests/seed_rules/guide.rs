//! The rules of `profiles::guide`.
