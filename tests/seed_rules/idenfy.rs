//! The rules of `profiles::idenfy`.
