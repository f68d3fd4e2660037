//! The redirect and the guard.
