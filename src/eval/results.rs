//! Results of tasks in a file, line by line, so that a run that was killed goes on where it stopped.
//!
//! The first line says what was measured on what; every further one is an answer. A file takes more configurations later on, but
//! never those of another model, other data or another device.

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::ResultsError;
use super::tasks::{Task, TaskAnswer};

/// What the first line calls this kind of file.
const FORMAT: &str = "spts-eval-tasks-1";

/// How the first line begins.
const START: &str = "{\"format\":";

/// What all results of a file have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Kind of file.
    format: String,
    /// The model's name.
    pub model: String,
    /// Fingerprint of its tensors.
    pub fingerprint: String,
    /// Hash of the data, as hex.
    pub data: String,
    /// Where the layers were.
    pub device: String,
    /// The program that wrote the file.
    pub program: String,
}

impl Header {
    /// The header of a new file of results.
    pub fn new(model: String, fingerprint: String, data_hash: u64, device: String, program: String) -> Header {
        Header { format: FORMAT.into(), model, fingerprint, data: format!("{data_hash:016x}"), device, program }
    }
}

/// The result of one prompt under one configuration: a line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultLine {
    /// Line of the prompt in the data, from 1.
    pub line: usize,
    /// The user's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Hash of the prompt's line, as hex.
    pub hash: String,
    /// Kind of task.
    pub task: String,
    /// Length that the prompt was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Name of the configuration.
    pub config: String,
    /// All of its settings.
    pub settings: String,
    /// From 0 to 1.
    pub score: f64,
    /// Time to the first token, in seconds.
    pub ttft_s: f64,
    /// Share of the dense cache's entries that were kept.
    pub cache_kept: f64,
    /// Tokens generated.
    pub n_generated: usize,
    /// The answer, if it was to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What dense did in the same turn, where that was measured with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside_dense: Option<BesideDense>,
}

impl ResultLine {
    /// An answer to a prompt of `n_tokens` tokens, without its text and with nothing beside it.
    pub fn new(task: &Task, n_tokens: usize, config: &str, settings: String, answer: &TaskAnswer) -> ResultLine {
        ResultLine {
            line: task.line,
            id: task.id.clone(),
            hash: format!("{:016x}", task.hash),
            task: task.task.clone(),
            length: task.length,
            n_tokens,
            config: config.to_owned(),
            settings,
            score: answer.score,
            ttft_s: answer.ttft_s,
            cache_kept: answer.cache_kept,
            n_generated: answer.n_generated,
            text: None,
            beside_dense: None,
        }
    }
}

/// A configuration beside dense, one directly after the other: the times of another day say little about these.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BesideDense {
    /// Dense's time to the first token, in seconds.
    pub dense_ttft_s: f64,
    /// How near it stays to dense's answer, where it was led along that.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub nearness: Option<Nearness>,
}

/// How near a configuration stays to dense's own answer when it is led along that, token by token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nearness {
    /// Share of the answer's tokens that it would have chosen, too.
    pub agreement: f64,
    /// Mean KL divergence of its next-token distributions from dense's, in nats.
    pub kl: f64,
}

/// All that a file of results holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// The first line.
    pub header: Header,
    /// The results, a line each.
    pub lines: Vec<ResultLine>,
}

/// Reads the whole lines of a file; what follows the last line's end was cut off while it was written, and is passed over.
/// `None` if there is no whole line.
fn parse(content: &str, path: &Path) -> Result<Option<Results>, ResultsError> {
    let whole = content.rfind('\n').map_or("", |end| &content[..end]);
    if whole.is_empty() {
        return Ok(None);
    }
    let bad = |line: usize, e: serde_json::Error| {
        let what = e.to_string().replace(" at line 1 column ", " at column ");
        ResultsError::Line { path: path.to_owned(), line, what }
    };
    let mut lines = whole.split('\n');
    let header: Header = serde_json::from_str(lines.next().unwrap_or("")).map_err(|e| bad(1, e))?;
    if header.format != FORMAT {
        let what = format!("found format `{}`, expected `{FORMAT}`", header.format);
        return Err(ResultsError::Line { path: path.to_owned(), line: 1, what });
    }
    let mut answers = Vec::new();
    for (i, line) in lines.enumerate() {
        answers.push(serde_json::from_str(line).map_err(|e| bad(i + 2, e))?);
    }
    Ok(Some(Results { header, lines: answers }))
}

fn io(path: &Path, what: &'static str) -> impl Fn(std::io::Error) -> ResultsError {
    move |e| ResultsError::Io { path: path.to_owned(), what, reason: e.to_string() }
}

/// Reads results to report them.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read(path: &Path) -> Result<Results, ResultsError> {
    let content = std::fs::read_to_string(path).map_err(io(path, "read"))?;
    let none = || ResultsError::Line { path: path.to_owned(), line: 1, what: "the file is empty".into() };
    parse(&content, path)?.ok_or_else(none)
}

/// Reads several files of the same data: parts of one measurement.
///
/// # Errors
/// As [`read`]; or the files are of different models, data, devices or programs, or two hold the same answer.
///
/// # Panics
/// Without a file.
pub fn read_all(paths: &[PathBuf]) -> Result<Results, ResultsError> {
    let mut all = read(&paths[0])?;
    for path in &paths[1..] {
        let more = read(path)?;
        let named: HashMap<&str, &str> = all.lines.iter().map(|l| (l.config.as_str(), l.settings.as_str())).collect();
        let configs: Vec<(&str, &str)> = named.into_iter().collect();
        check(path, &more, &all.header, &configs)?;
        let there: HashSet<(usize, &str)> = all.lines.iter().map(|l| (l.line, l.config.as_str())).collect();
        if let Some(twice) = more.lines.iter().position(|l| there.contains(&(l.line, l.config.as_str()))) {
            let what = "an answer that another of the files has, too".to_owned();
            return Err(ResultsError::Line { path: path.clone(), line: twice + 2, what });
        }
        all.lines.extend(more.lines);
    }
    Ok(all)
}

/// A file that results are added to.
pub struct ResultsWriter {
    path: PathBuf,
    file: File,
}

impl ResultsWriter {
    /// Opens a file, or makes it, and returns the answers that are there. A half-written last line is cut off. `configs` are
    /// the names and settings that are to be measured.
    ///
    /// # Errors
    /// The file cannot be read or written, holds something else, or results of another model, other data, another device, or
    /// a configuration of the same name with other settings; it is left as it was.
    pub fn open(
        path: &Path,
        header: &Header,
        configs: &[(&str, &str)],
    ) -> Result<(ResultsWriter, Vec<ResultLine>), ResultsError> {
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io(path, "write"))?;
        // Where a file system knows no locks, there is none.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(ResultsError::Locked { path: path.to_owned() });
        }
        let mut content = String::new();
        file.read_to_string(&mut content).map_err(io(path, "read"))?;
        let lines = match parse(&content, path)? {
            Some(found) => {
                check(path, &found, header, configs)?;
                found.lines
            }
            // One line that never ended: our own header, or the user's text.
            None if content.bytes().zip(START.bytes()).all(|(found, ours)| found == ours) => Vec::new(),
            None => {
                let what = "expected a file that eval tasks has written".into();
                return Err(ResultsError::Line { path: path.to_owned(), line: 1, what });
            }
        };
        let whole = content.rfind('\n').map_or(0, |end| end + 1) as u64;
        file.set_len(whole).map_err(io(path, "write"))?;
        file.seek(SeekFrom::End(0)).map_err(io(path, "write"))?;
        let mut writer = ResultsWriter { path: path.to_owned(), file };
        if whole == 0 {
            writer.write(header)?;
        }
        Ok((writer, lines))
    }

    /// Appends a result to the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, line: &ResultLine) -> Result<(), ResultsError> {
        self.write(line)
    }

    fn write(&mut self, value: &impl Serialize) -> Result<(), ResultsError> {
        let json = serde_json::to_string(value).map_err(std::io::Error::from);
        // One write a line: a kill leaves whole lines, save perhaps the last one.
        json.and_then(|line| self.file.write_all((line + "\n").as_bytes())).map_err(io(&self.path, "write"))
    }
}

fn check(path: &Path, found: &Results, header: &Header, configs: &[(&str, &str)]) -> Result<(), ResultsError> {
    let foreign = |what: &str, found: &str, expected: &str| {
        let [what, found, expected] = [what, found, expected].map(str::to_owned);
        Err(ResultsError::Foreign { path: path.to_owned(), what, found, expected })
    };
    let Header { model, fingerprint, data, device, .. } = header;
    let there = &found.header;
    if there.fingerprint != *fingerprint {
        let name = |model: &str, print: &str| format!("{model} ({print})");
        return foreign("model", &name(&there.model, &there.fingerprint), &name(model, fingerprint));
    }
    if there.data != *data {
        return foreign("data file", &there.data, data);
    }
    if there.device != *device {
        return foreign("device", &there.device, device);
    }
    let settings: HashMap<&str, &str> = configs.iter().copied().collect();
    for line in &found.lines {
        if let Some(expected) = settings.get(line.config.as_str()).filter(|s| **s != line.settings) {
            return foreign(&format!("configuration called `{}`", line.config), &line.settings, expected);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header::new("m".into(), "f00".into(), 7, "CPU".into(), "1".into())
    }

    fn line(n: usize) -> ResultLine {
        ResultLine {
            line: n,
            id: None,
            hash: "aa".into(),
            task: "t".into(),
            length: Some(4096),
            n_tokens: 4000,
            config: "dense".into(),
            settings: "all".into(),
            score: 0.1 + 0.2,
            ttft_s: 1e-3,
            cache_kept: 1.0,
            n_generated: 3,
            text: None,
            beside_dense: None,
        }
    }

    fn open(path: &Path, header: &Header) -> Result<(ResultsWriter, Vec<ResultLine>), ResultsError> {
        ResultsWriter::open(path, header, &[("dense", "all")])
    }

    #[test]
    fn parts_are_taken_together_if_they_are_of_one_measurement() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, header: &Header, lines: &[ResultLine]| {
            let path = dir.path().join(name);
            let (mut writer, _) = open(&path, header).unwrap();
            lines.iter().for_each(|line| writer.add(line).unwrap());
            path
        };
        let a = write("a", &header(), &[line(1), line(3)]);
        let b = write("b", &header(), &[line(2)]);
        let all = read_all(&[a.clone(), b]).unwrap();
        assert_eq!(all.lines.iter().map(|l| l.line).collect::<Vec<_>>(), [1, 3, 2]);
        let again = write("again", &header(), &[line(4), line(3)]);
        let message = read_all(&[a.clone(), again]).unwrap_err().to_string();
        assert!(message.ends_with("line 3: no results of eval tasks: an answer that another of the files has, too"));
        let other = write("other", &Header { data: "8".into(), ..header() }, &[line(2)]);
        assert!(
            matches!(read_all(&[a.clone(), other]), Err(ResultsError::Foreign { what, .. }) if what == "data file")
        );
        let set = ResultLine { settings: "some".into(), ..line(2) };
        let path = dir.path().join("set");
        let (mut writer, _) = ResultsWriter::open(&path, &header(), &[("dense", "some")]).unwrap();
        writer.add(&set).unwrap();
        assert!(matches!(read_all(&[a, path]), Err(ResultsError::Foreign { .. })));
    }

    #[test]
    fn a_cut_line_is_dropped_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        for n in [1, 2] {
            let (mut writer, there) = open(&path, &header()).unwrap();
            assert_eq!(there.len(), n - 1);
            writer.add(&line(n)).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Results { header: header(), lines: vec![line(1), line(2)] });
        // Killed at any byte: every whole line is kept, and the next run makes the file whole again.
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut writer, there) = open(&path, &header()).unwrap();
            let kept = whole[..cut].iter().filter(|b| **b == b'\n').count();
            assert_eq!(there.len(), kept.saturating_sub(1), "cut at {cut}");
            for n in there.len() + 1..=2 {
                writer.add(&line(n)).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn foreign_files_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        open(&path, &header()).unwrap().0.add(&line(1)).unwrap();
        let before = std::fs::read(&path).unwrap();
        for (other, what) in [
            (Header { fingerprint: "f01".into(), ..header() }, "another model"),
            (Header { data: "8".into(), ..header() }, "another data file"),
            (Header { device: "GPU".into(), ..header() }, "another device"),
        ] {
            let message = open(&path, &other).err().unwrap().to_string();
            assert!(message.contains(what) && !message.contains('\n'), "{message}");
        }
        let other = ResultsWriter::open(&path, &header(), &[("dense", "some")]).err().unwrap().to_string();
        assert!(other.contains("configuration called `dense`: found all, expected some"), "{other}");
        // Another program may go on, with further configurations.
        let newer = Header { program: "2".into(), ..header() };
        assert!(ResultsWriter::open(&path, &newer, &[("default", "some")]).is_ok());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        for text in ["my notes", "my notes\n", "{\"format\":\"x\"}\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(open(&path, &header()).err(), Some(ResultsError::Line { line: 1, .. })), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(matches!(open(dir.path(), &header()).err(), Some(ResultsError::Io { what: "write", .. })));
        assert!(matches!(read(&dir.path().join("none")).err(), Some(ResultsError::Io { what: "read", .. })));
    }

    #[test]
    fn one_run_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        let first = open(&path, &header()).unwrap();
        assert_eq!(open(&path, &header()).err(), Some(ResultsError::Locked { path: path.clone() }));
        drop(first);
        open(&path, &header()).unwrap();
    }
}
