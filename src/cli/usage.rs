//! What a wrong command line is told, in one line: what is wrong, and what would be right.
//!
//! Clap finds the fault. Where its message misleads (a list of what is missing without the alternatives, the whole help text for a
//! missing command, a similar flag that is not similar, a stray word taken for a command) the message is written here.

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// The message for `error`. `root` is the program's command, built; `words` is what follows the program's name.
pub fn message(error: &Error, root: &Command, words: &[String]) -> String {
    let place = Place::of(root, words);
    let culprit = || {
        let kinds = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg];
        kinds.iter().flat_map(|kind| context(error, *kind)).next()
    };
    let text = match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => culprit().map(|word| place.unknown(&word, words)),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => place.command_expected(),
        ErrorKind::MissingRequiredArgument => Some(place.missing(&context(error, ContextKind::InvalidArg))),
        ErrorKind::ArgumentConflict => {
            context(error, ContextKind::InvalidSubcommand).first().map(|word| place.unknown(word, words))
        }
        _ => None,
    };
    format!("{}; see {}", text.unwrap_or_else(|| one_line(error)), place.help())
}

/// Clap's message without its tips and its usage text, in one line, and with numbers' limits in words.
pub fn one_line(error: &Error) -> String {
    let rendered = error.render().to_string();
    let ends = ["Usage:", "For more information", "tip: "];
    let lines = rendered.lines().map(str::trim).take_while(|l| !ends.iter().any(|end| l.starts_with(end)));
    let text = lines.filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let text = text.replace("invalid digit found in string", "expected a whole number");
    let text = text.replace("cannot be used multiple times", "is there more than once");
    match text.rsplit_once(": ") {
        Some((before, reason)) => format!("{before}: {}", limits(reason).unwrap_or_else(|| reason.to_owned())),
        None => text,
    }
}

/// `0 is not in 1..=512`, for people.
fn limits(reason: &str) -> Option<String> {
    let (_, range) = reason.split_once(" is not in ")?;
    let (from, to) = range.split_once("..")?;
    let largest = [i32::MAX.into(), i64::MAX, u16::MAX.into(), u32::MAX.into()];
    match to.trim_start_matches('=') {
        to if to.is_empty() || to.parse().is_ok_and(|n: i64| largest.contains(&n)) => {
            Some(format!("expected {from} or more"))
        }
        to => Some(format!("expected a number from {from} to {to}")),
    }
}

fn context(error: &Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(one)) => vec![one.clone()],
        Some(ContextValue::Strings(many)) => many.clone(),
        _ => Vec::new(),
    }
}

/// The command that the fault is in.
struct Place<'a> {
    root: &'a Command,
    /// From the subcommand down; empty where the flags are those of a run.
    path: Vec<&'a Command>,
}

impl<'a> Place<'a> {
    fn of(root: &'a Command, words: &[String]) -> Place<'a> {
        let mut place = Place { root, path: Vec::new() };
        for word in words {
            let Some(next) = place.command().find_subcommand(word) else { break };
            place.path.push(next);
        }
        place
    }

    fn command(&self) -> &'a Command {
        self.path.last().unwrap_or(&self.root)
    }

    /// `eval needle`; nothing for a run.
    fn name(&self) -> String {
        self.path.iter().map(|c| c.get_name()).collect::<Vec<_>>().join(" ")
    }

    fn help(&self) -> String {
        format!("{} --help", self.name()).trim_start().to_owned()
    }

    /// A flag or a word that has no place on the command line.
    fn unknown(&self, word: &str, words: &[String]) -> String {
        if let Some(message) = self.command_expected() {
            return message;
        }
        if !word.starts_with('-') {
            return self.stray(word, words);
        }
        let flag = word.split_once('=').map_or(word, |(flag, _)| flag);
        // Of several letters behind one dash clap names the first.
        let whole = words.iter().find(|w| !flag.starts_with("--") && w.starts_with(flag)).map_or(flag, String::as_str);
        let whole = whole.split_once('=').map_or(whole, |(flag, _)| flag);
        let of = if self.path.is_empty() { "a run".to_owned() } else { self.name() };
        let elsewhere: Vec<String> = owners(self.root, flag).into_iter().filter(|owner| *owner != of).collect();
        if whole == flag && !elsewhere.is_empty() {
            return format!("{flag} is no flag of {of}, only of {}", elsewhere.join(", "));
        }
        match similar(self.command(), whole) {
            Some(other) => format!("unknown flag {whole} (did you mean {other}?)"),
            None => format!("unknown flag {whole}"),
        }
    }

    /// A word that is neither a flag, nor a flag's value, nor a command.
    fn stray(&self, word: &str, words: &[String]) -> String {
        let takes = |flag: &str| find(self.command(), flag);
        let commands = || self.root.get_subcommands().map(Command::get_name);
        if self.path.is_empty() && commands().any(|name| name == word) {
            return format!("{word} is a command: it comes first, and its own flags behind it");
        }
        let shown = format!("'{word}' has no flag before it");
        if word.ends_with(".gguf") && takes("--model") {
            let output = if takes("--output") { ", a file to write behind -o" } else { "" };
            return format!("{shown}: a model goes behind -m{output}");
        }
        if takes("--type") && spts_quant::Preset::from_name(word).is_some() {
            return format!("{shown}: a type goes behind --type");
        }
        if !self.path.is_empty() {
            let text = if takes("--file") {
                "a text goes behind -f".to_owned()
            } else {
                format!("{} takes flags", self.name())
            };
            return format!("{shown}: {text}");
        }
        if words.first().is_none_or(|first| first != word) {
            return format!(
                "{shown}: a prompt goes behind -p, in quotes if there are spaces in it, and a document behind -f"
            );
        }
        let near = commands().chain(["--help", "--version"]).find(|name| is_near(name.trim_start_matches('-'), word));
        match near {
            Some(near) => format!("there is no command {word} (did you mean {near}?)"),
            None => format!(
                "there is no command {word}: expected {}, or -m MODEL with -p TEXT for an answer",
                commands().collect::<Vec<_>>().join(", ")
            ),
        }
    }

    /// `eval` alone says nothing.
    fn command_expected(&self) -> Option<String> {
        let names: Vec<&str> = self.command().get_subcommands().map(Command::get_name).collect();
        let (last, others) = names.split_last()?;
        (!self.path.is_empty())
            .then(|| format!("{} needs a command behind it: {} or {last}", self.name(), others.join(", ")))
    }

    /// What has to be there, of arguments as clap shows them: `--model <FILE>`.
    fn missing(&self, arguments: &[String]) -> String {
        let shown = |argument: &String| {
            let (flag, value) = argument.split_once(' ').unwrap_or((argument, ""));
            let value = value.split('>').next().unwrap_or(value).trim_start_matches('<');
            match (flag, self.path.first().map(|c| c.get_name())) {
                ("--prompt", None) => "-p TEXT (a prompt) or -f FILE (a document)".to_owned(),
                ("--model", Some("plan")) => "-m FILE (a model) or --shape NAME".to_owned(),
                ("--model", Some("bench")) => "-m FILE (a model) or --synthetic SHAPE".to_owned(),
                ("--data", Some("tune")) => {
                    "--data FILE (prompts with answers) or --text FILE (a long text)".to_owned()
                }
                ("--model", _) => "-m FILE (a model)".to_owned(),
                ("--json", _) => "--json, which --logprobs needs".to_owned(),
                ("--synthetic", _) => "--synthetic SHAPE, which --write needs".to_owned(),
                _ if flag.starts_with('<') => flag.trim_matches(['<', '>']).to_owned(),
                _ => {
                    let mut known = self.command().get_arguments();
                    let short = known.find(|a| a.get_long() == flag.strip_prefix("--")).and_then(|a| a.get_short());
                    format!("{} {value}", short.map_or(flag.to_owned(), |s| format!("-{s}")))
                }
            }
        };
        format!("missing: {}", arguments.iter().map(shown).collect::<Vec<_>>().join("; "))
    }
}

/// The long flags of a command, with their aliases.
fn long_flags(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().flat_map(|a| a.get_long().into_iter().chain(a.get_all_aliases().unwrap_or_default()))
}

fn find(command: &Command, flag: &str) -> bool {
    match flag.strip_prefix("--") {
        Some(name) => long_flags(command).any(|long| long == name),
        None => command.get_arguments().any(|a| a.get_short().is_some() && a.get_short() == flag.chars().nth(1)),
    }
}

/// The commands that have this flag.
fn owners(root: &Command, flag: &str) -> Vec<String> {
    let mut found: Vec<String> = find(root, flag).then(|| "a run".to_owned()).into_iter().collect();
    for command in root.get_subcommands() {
        found.extend(find(command, flag).then(|| command.get_name().to_owned()));
        let inner = command.get_subcommands().filter(|c| find(c, flag));
        found.extend(inner.map(|c| format!("{} {}", command.get_name(), c.get_name())));
    }
    found
}

/// The flag that was probably meant: one that begins like it, or differs in few letters.
pub(super) fn similar(command: &Command, flag: &str) -> Option<String> {
    let name = flag.trim_start_matches('-').to_lowercase();
    let begins = long_flags(command).find(|long| name.len() >= 3 && long.starts_with(&name));
    let nearest = || long_flags(command).filter(|long| is_near(long, &name)).min_by_key(|long| distance(long, &name));
    begins.or_else(nearest).map(|long| format!("--{long}"))
}

/// Whether one could be a slip of the other: a letter in four, at least one.
fn is_near(a: &str, b: &str) -> bool {
    let len = a.chars().count().min(b.chars().count());
    len >= 3 && distance(a, b) <= (len / 4).max(1)
}

/// Letters to insert, leave out, exchange or swap with a neighbour to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut best =
                (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, n) in [
            ("", "", 0),
            ("temp", "temp", 0),
            ("temp", "tmep", 1),
            ("no-mmap", "no-map", 1),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
        assert!(is_near("temperature", "temprature") && !is_near("pool", "foo") && !is_near("no", "np"));
    }

    #[test]
    fn limits_in_words() {
        assert_eq!(limits("0 is not in 1..=512").unwrap(), "expected a number from 1 to 512");
        assert_eq!(limits("-2 is not in -1..=2147483647").unwrap(), "expected -1 or more");
        assert_eq!(limits("-2 is not in -1..").unwrap(), "expected -1 or more");
        assert_eq!(limits("expected a number"), None);
    }
}
