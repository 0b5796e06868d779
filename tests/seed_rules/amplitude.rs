//! The rules of `profiles::amplitude`.
