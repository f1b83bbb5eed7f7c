//! `utterd backup`: the database of a running server, or a closed one, in a file of its own.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use hyper::Method;

use super::http::{Asked, ServerArgs, Target, exchange};
use super::{Failure, Outcome, code, runtime, say};
use crate::store::open_read_only;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to put the copy.
    file: PathBuf,
    /// Put it in the place of a file that is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// Copy the database of this directory; no server may be using it.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let unusable = |error| Failure::new(code::DATA, anyhow::Error::from(error));
    let copy = Copy::begin(&args.file, args.force)?;
    match &args.data {
        Some(dir) => {
            let file = copy.file.try_clone()?;
            open_read_only(dir).map_err(unusable)?.backup(file).map_err(unusable)?;
        }
        None => runtime()?.block_on(fetch(&args.server.target()?, &copy.file))?,
    }
    let bytes = copy.finish()?;
    say(&format!("{}: {bytes} bytes", args.file.display()));
    Ok(())
}

/// Writes down what a server sends.
async fn fetch(target: &Target, mut to: &File) -> anyhow::Result<()> {
    let path = "/api/v1/backup";
    let asked = Asked { method: Method::POST, path, body: String::new(), if_match: None };
    let answer = exchange(target, asked).await?;
    let status = answer.status();
    let mut body = answer.into_body();
    if !status.is_success() {
        let text = body.collect().await?.to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        bail!("{path}: {}", value["error"].as_str().unwrap_or(status.as_str()));
    }
    while let Some(frame) = body.frame().await {
        // It ends with an error if it ends before its length.
        let frame = frame.context("the server broke off")?;
        if let Ok(piece) = frame.into_data() {
            to.write_all(&piece)?;
        }
    }
    Ok(())
}

/// A copy on its way. Until it is whole it has another name, and is gone if it never is.
struct Copy {
    target: PathBuf,
    part: PathBuf,
    file: File,
    force: bool,
}

impl Copy {
    /// Nothing is touched that is there, and nothing is asked of anybody if something is.
    fn begin(target: &Path, force: bool) -> anyhow::Result<Self> {
        if !force && target.symlink_metadata().is_ok() {
            bail!("{} is there already; --force replaces it", target.display());
        }
        let mut name = target.file_name().context("FILE names no file")?.to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let part = target.with_file_name(name);
        let options =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).clone();
        let file = options.open(&part).with_context(|| part.display().to_string())?;
        Ok(Self { target: target.to_owned(), part, file, force })
    }

    /// Makes sure that it is a database and on the disk, and gives it its name; its length.
    fn finish(self) -> anyhow::Result<u64> {
        self.file.sync_all()?;
        let opened = open_read_only(&self.part).context("what came is no database")?;
        drop(opened);
        match self.force {
            true => std::fs::rename(&self.part, &self.target)?,
            // Unlike a renaming, a link does not replace what came to be there meanwhile.
            false => std::fs::hard_link(&self.part, &self.target)
                .with_context(|| self.target.display().to_string())?,
        }
        let dir = self.target.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(self.file.metadata()?.len())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Under its own name it stays.
        if let Err(error) = std::fs::remove_file(&self.part)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, part = %self.part.display(), "a part of a copy is left");
        }
    }
}
