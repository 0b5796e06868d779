//! The rules of `profiles::yugabytedb`.
