//! Configuration problems: position, key, what was found and what is expected.

use std::fmt;
use std::path::{Path, PathBuf};

/// A position in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The file as named on the command line or in the configuration.
    pub file: PathBuf,
    /// Line and column, counted from 1; `None` for the file as a whole.
    pub position: Option<(usize, usize)>,
}

impl Position {
    pub fn file(file: &Path) -> Self {
        Self { file: file.to_owned(), position: None }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.file.display()),
            None => self.file.display().fmt(f),
        }
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub position: Position,
    /// The key, such as `listener[0].tls.min_version`; empty for the file as a whole.
    pub key: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.position)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All problems; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Returns `value` if there are no problems.
    ///
    /// # Errors
    /// The problems, sorted by position.
    pub fn unless_any<T>(mut problems: Vec<Problem>, value: T) -> Result<T, Self> {
        // In file order; problems with a file as a whole come first.
        problems.sort_by(|a, b| a.position.cmp(&b.position));
        if problems.is_empty() { Ok(value) } else { Err(Self(problems)) }
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// One problem per line.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
