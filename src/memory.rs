//! What is seen of this process's memory from outside: nothing. It is not dumped when the process crashes, and only who
//! may trace any process of the node (`CAP_SYS_PTRACE`) can read it.
//!
//! What is given back is overwritten: see the allocator in `main`.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Seals the memory; to be called before a secret is read.
///
/// # Errors
/// When the kernel refuses, which it has no reason for.
pub fn seal() -> nix::Result<()> {
    // Against a crash, and against a process of the same user. A program that takes cores (a pipe in `core_pattern`) is
    // given them whatever their limit is.
    prctl::set_dumpable(false)?;
    // For what we start, whose memory the kernel treats anew.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}
