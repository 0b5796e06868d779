//! The rules of `profiles::amplitude_products`.
