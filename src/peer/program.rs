//! Running one program under a limit of time and of output, and leaving nothing of it behind.
//!
//! The program leads a process group of its own, so that what it starts dies with it. Knows nothing
//! of speech.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// What is kept of a program's standard error: its end.
const STDERR_BYTES_KEPT: usize = 2048;
/// Bytes asked of a pipe at once.
const READ_BYTES: usize = 16 * 1024;

/// One run of one program.
pub(super) struct Run<'a> {
    /// Program and arguments, placeholders filled in.
    pub(super) argv: &'a [String],
    /// What it reads; the end of it is the end of its input.
    pub(super) stdin: &'a [u8],
    /// Time from start to end of output.
    pub(super) limit: Duration,
    /// More output than this ends the run.
    pub(super) stdout_bytes_max: usize,
}

/// A run failed; `stderr` is the tail of what the program had to say.
#[derive(Debug)]
pub(super) struct RunError {
    pub(super) fault: Fault,
    pub(super) stderr: String,
}

/// How a run fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("not installed")]
    NotFound,
    #[error("cannot be run: {0}")]
    Spawn(io::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("more than {0} bytes of output")]
    TooMuch(usize),
    #[error("{0}")]
    Exit(ExitStatus),
    #[error("its pipes: {0}")]
    Pipe(io::Error),
}

impl Run<'_> {
    /// Runs to the end and gives its standard output. Dropped earlier, it kills the whole group.
    pub(super) async fn output(&self) -> Result<Vec<u8>, RunError> {
        let mut stderr = Vec::new();
        let result = match self.spawn() {
            Ok(child) => self.attend(child, &mut stderr).await,
            Err(fault) => Err(fault),
        };
        result.map_err(|fault| RunError {
            fault,
            stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
        })
    }

    fn spawn(&self) -> Result<Child, Fault> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(Fault::NotFound);
        };
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => Fault::NotFound,
                _ => Fault::Spawn(e),
            })
    }

    async fn attend(&self, mut child: Child, stderr: &mut Vec<u8>) -> Result<Vec<u8>, Fault> {
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin
                && let Err(e) = stdin.write_all(self.stdin).await
            {
                // A program may know enough before it has read everything.
                tracing::debug!(error = %e, program = self.argv[0], "did not read all its input");
            }
            Ok(())
        };
        let whole = async {
            let ((), stdout, ()) = tokio::try_join!(
                feed,
                read_bounded(out, self.stdout_bytes_max),
                read_tail(err, stderr)
            )?;
            let status = child.wait().await.map_err(Fault::Pipe)?;
            if status.success() { Ok(stdout) } else { Err(Fault::Exit(status)) }
        };
        let result = tokio::time::timeout(self.limit, whole).await;
        if matches!(result, Ok(Ok(_) | Err(Fault::Exit(_)))) {
            group.0 = None; // Ended by itself; its number may be another's by now.
        }
        result.unwrap_or(Err(Fault::TimedOut(self.limit)))
    }
}

/// A running program's process group; killed when this is dropped while it still has a number.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(e) = kill_process_group(pid, Signal::KILL)
        {
            tracing::debug!(error = %e, group = ?pid, "could not kill a program's group");
        }
    }
}

async fn read_bounded(
    from: Option<impl AsyncRead + Unpin>,
    bytes_max: usize,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // One byte over the limit is enough to know.
        let mut from = from.take(bytes_max as u64 + 1);
        from.read_to_end(&mut bytes).await.map_err(Fault::Pipe)?;
    }
    if bytes.len() > bytes_max { Err(Fault::TooMuch(bytes_max)) } else { Ok(bytes) }
}

async fn read_tail(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) -> Result<(), Fault> {
    let Some(mut from) = from else { return Ok(()) };
    let mut piece = vec![0; READ_BYTES];
    loop {
        let count = from.read(&mut piece).await.map_err(Fault::Pipe)?;
        if count == 0 {
            return Ok(());
        }
        kept.extend_from_slice(&piece[..count]);
        let over = kept.len().saturating_sub(STDERR_BYTES_KEPT);
        kept.drain(..over);
    }
}

/// A directory of one job's own, readable by nobody else, gone when this is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(under: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = under.join(format!("utterd-{}", uuid::Uuid::new_v4()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!(error = %e, path = %self.0.display(), "temporary files stay behind");
        }
    }
}

/// What placeholders stand for.
#[derive(Clone, Copy, Default)]
pub(super) struct Blanks<'a> {
    pub(super) src: &'a str,
    pub(super) tgt: &'a str,
    pub(super) wav: &'a str,
    pub(super) text: &'a str,
}

impl Blanks<'_> {
    /// Fills `{src}`, `{tgt}`, `{wav}` and `{text}`; other braces, and braces in what is filled in,
    /// stay as they are.
    pub(super) fn fill(&self, template: &[String]) -> Vec<String> {
        template.iter().map(|argument| self.fill_one(argument)).collect()
    }

    fn fill_one(&self, argument: &str) -> String {
        let names =
            [("{src}", self.src), ("{tgt}", self.tgt), ("{wav}", self.wav), ("{text}", self.text)];
        let mut filled = String::with_capacity(argument.len());
        let mut rest = argument;
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            filled.push_str(before);
            let known = names.iter().find(|(name, _)| from.starts_with(name));
            let (name, value) = known.copied().unwrap_or(("{", "{"));
            // No argument can hold a NUL.
            filled.extend(value.chars().filter(|c| *c != '\0'));
            rest = &from[name.len()..];
        }
        filled + rest
    }
}

/// A command line with a quote that never ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a quote is not closed")]
pub struct UnclosedQuote;

/// Splits a command line into words as a POSIX shell does: blanks separate, quotes and backslashes
/// protect.
///
/// Nothing is expanded; there is no shell behind it.
pub fn split_words(line: &str) -> Result<Vec<String>, UnclosedQuote> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match letter {
            '\'' => loop {
                match letters.next().ok_or(UnclosedQuote)? {
                    '\'' => break,
                    inside => word.push(inside),
                }
            },
            '"' => loop {
                match letters.next().ok_or(UnclosedQuote)? {
                    '"' => break,
                    '\\' => match letters.next().ok_or(UnclosedQuote)? {
                        protected @ ('"' | '\\' | '$' | '`') => word.push(protected),
                        other => word.extend(['\\', other]),
                    },
                    inside => word.push(inside),
                }
            },
            '\\' => word.push(letters.next().ok_or(UnclosedQuote)?),
            plain => word.push(plain),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_would() {
        for (line, words) in [
            ("", vec![]),
            ("  a  b\tc\n", vec!["a", "b", "c"]),
            ("espeak-ng -v '{tgt}' \"a b\"", vec!["espeak-ng", "-v", "{tgt}", "a b"]),
            (r#"a\ b 'c\d' "e\"f\g""#, vec!["a b", r"c\d", r#"e"f\g"#]),
            ("''", vec![""]),
            ("a'b'\"c\"d", vec!["abcd"]),
        ] {
            assert_eq!(split_words(line).unwrap(), words, "{line}");
        }
        for open in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(split_words(open), Err(UnclosedQuote), "{open}");
        }
    }

    #[test]
    fn blanks_are_filled_once_and_other_braces_stay() {
        let blanks = Blanks { src: "en", tgt: "es", wav: "/w", text: "{src}\0!" };
        let template = ["{src}-{tgt}", "{{wav}}", "{text}", "{x} {", "plain"].map(str::to_owned);
        let filled = blanks.fill(&template);
        assert_eq!(filled, ["en-es", "{/w}", "{src}!", "{x} {", "plain"]);
    }
}
