//! The limit on open files: programs that hold many connections raise it when they start.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's limit on open files to the most it may have; gives the limit, or `None` when there is none.
///
/// Shells and systemd give 1,024 by default so that programs which use `select(2)` keep working; ours do not.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_open_files() -> io::Result<Option<u64>> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_most_there_may_be() {
        let raised = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, raised);
    }
}
