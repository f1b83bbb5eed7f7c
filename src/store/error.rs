//! What can go wrong with a store, in the operator's terms.

use std::path::{Path, PathBuf};

use super::codec::CodecError;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another `Store`, has it.
    #[error("{} is in use: another utterd has it open; stop that one, or ask it", file.display())]
    Locked {
        /// The file that is locked.
        file: PathBuf,
    },
    /// There has been a database and it is gone.
    #[error(
        "{} is missing, but {} says that there was one. Starting empty would lose accepted work, \
         so utterd does not do it by itself.{}", file.display(), marker.display(), ways_out(file)
    )]
    Missing {
        /// The database.
        file: PathBuf,
        /// The evidence.
        marker: PathBuf,
    },
    /// The file is not a database that can be read.
    #[error("{} is damaged ({detail}).{}", file.display(), ways_out(file))]
    Corrupt {
        /// The database.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A newer or older release made it.
    #[error("{} belongs to another release of utterd: {detail}. Use that one.", file.display())]
    OtherRelease {
        /// The database.
        file: PathBuf,
        /// What is unknown.
        detail: String,
    },
    /// Only for reading without a server: there is no database.
    #[error("{} does not exist", file.display())]
    Absent {
        /// The database.
        file: PathBuf,
    },
    /// Only for reading without a server: the file needs a repair that would write to it.
    #[error("{} was not closed properly; start utterd once to repair it", file.display())]
    Unclean {
        /// The database.
        file: PathBuf,
    },
    /// One row is not what was written.
    #[error("a row of table {table} cannot be read: {error}")]
    BadRow {
        /// Where.
        table: &'static str,
        /// Why.
        error: CodecError,
    },
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// The database engine failed.
    #[error("database: {0}")]
    Engine(redb::Error),
    /// There is no room on the disk. What was to be committed is kept by whoever says this.
    #[error("the disk of {} is full", file.display())]
    Full {
        /// The database.
        file: PathBuf,
    },
    /// A copy beside it would fill the disk.
    #[error("there is too little room on the disk of {} for a copy beside it", file.display())]
    NoRoom {
        /// The database.
        file: PathBuf,
    },
    /// A copy was not made to its end.
    #[error("{} was closed or opened again while it was copied", file.display())]
    Interrupted {
        /// The database.
        file: PathBuf,
    },
    /// The store has been shut down.
    #[error("the store has been shut down")]
    Stopped,
}

/// What an operator can do when the database cannot be used.
fn ways_out(file: &Path) -> String {
    let dir = file.parent().unwrap_or(file);
    format!(
        "\nEither\n  - restore a backup of {}, or\n  - move the directory {} aside and start \
         again: utterd then starts empty, and what was accepted and not delivered is lost.",
        file.display(),
        dir.display()
    )
}

macro_rules! from_engine {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                StoreError::Engine(error.into())
            }
        })*
    };
}
from_engine!(StorageError, TableError, TransactionError, CommitError, SetDurabilityError);
