//! Flags of several letters behind a single dash (`-ngl`), which llama.cpp has and clap does not.
//!
//! [`expand`] turns them into their long forms before clap sees them and remembers what was typed, so that messages
//! ([`Typed::restore`]) speak of the flag in the user's hand. It stops at flags of llama.cpp that are not here
//! (`cli/llama_cpp.rs`), which clap would take for others, and at values that are glued to a short flag and are no numbers
//! (`-ngl99` is `-ngl 99`, `-phi` is no flag): llama.cpp has none, and a slip would become a document or a prompt. [`show`] puts
//! the short forms into help texts.

use std::ffi::OsString;

use clap::{Arg, Command};

use super::llama_cpp;
use super::usage::similar;

/// Flags of more than one letter, and the long flag that each stands for.
const SHORT_FORMS: [(&str, &str); 11] = [
    ("-ngl", "--n-gpu-layers"),
    ("-ncmoe", "--n-cpu-moe"),
    ("-cmoe", "--cpu-moe"),
    ("-dev", "--device"),
    ("-ub", "--ubatch-size"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-md", "--model-draft"),
    ("-sys", "--system-prompt"),
    ("-no-cnv", "--no-cnv"),
    ("-nr", "--no-repack"),
];

/// How flags were typed, where that is not their long form.
#[derive(Debug, Default, PartialEq)]
pub struct Typed(Vec<(String, String)>);

impl Typed {
    /// Puts the flags as typed in place of their long forms.
    pub fn restore(&self, message: &str) -> String {
        let mut out = message.to_owned();
        for (long, typed) in &self.0 {
            // A long flag may be the beginning of another one.
            let mut rest = std::mem::take(&mut out);
            while let Some(at) = rest.find(long.as_str()) {
                let after = &rest[at + long.len()..];
                let whole = !after.starts_with(|c: char| c == '-' || c.is_ascii_alphanumeric());
                out.push_str(&rest[..at]);
                out.push_str(if whole { typed } else { long });
                rest = after.to_owned();
            }
            out.push_str(&rest);
        }
        out
    }
}

/// Replaces the flags of [`SHORT_FORMS`] by long flags; values of flags and everything after `--` stay as they are.
///
/// # Errors
/// The message about a flag of llama.cpp that is not here.
pub fn expand(argv: impl IntoIterator<Item = OsString>, command: &Command) -> Result<(Vec<OsString>, Typed), String> {
    let mut argv = argv.into_iter();
    let mut command = command;
    let mut out: Vec<OsString> = argv.next().into_iter().collect();
    let mut typed = Typed::default();
    while let Some(arg) = argv.next() {
        if arg == "--" {
            out.push(arg);
            break;
        }
        let Some(text) = arg.to_str().filter(|t| t.starts_with('-') && t.len() > 1) else {
            // From here on flags are the subcommand's.
            let is_named = |c: &&Command| arg == c.get_name() || c.get_all_aliases().any(|alias| arg == alias);
            command = command.get_subcommands().find(is_named).unwrap_or(command);
            out.push(arg);
            continue;
        };
        let (flag, value) = text.split_once('=').map_or((text, None), |(f, v)| (f, Some(v)));
        let known = SHORT_FORMS.iter().find(|(short, _)| *short == flag).map(|(_, long)| (*long).to_owned());
        // llama.cpp takes underscores for dashes in long flags.
        let dashed =
            || Some(flag.replace('_', "-")).filter(|d| d != flag && d.starts_with("--") && find(command, d).is_some());
        let replaced = known.or_else(dashed);
        let several_letters = !flag.starts_with("--") && flag.chars().count() > 2;
        // A number behind a flag of several letters: the longest flag counts.
        let glued = SHORT_FORMS.iter().filter(|_| several_letters && replaced.is_none() && value.is_none());
        let glued = glued.filter_map(|(short, long)| Some((*short, *long, flag.strip_prefix(short)?)));
        let glued = glued.filter(|(_, long, rest)| is_number(rest) && takes_number(command, long));
        if let Some((short, long, number)) = glued.max_by_key(|(short, ..)| short.len()) {
            typed.0.push((long.to_owned(), short.to_owned()));
            out.push(format!("{long}={number}").into());
            continue;
        }
        let option = find(command, replaced.as_deref().unwrap_or(flag));
        if replaced.is_none() && (several_letters || option.is_none()) {
            if let Some(advice) = llama_cpp::advice(flag) {
                return Err(format!("{flag} is a flag of llama.cpp that is not here: {advice}"));
            }
            if several_letters && find(command, &format!("-{flag}")).is_some() {
                return Err(format!("unknown flag {flag} (did you mean -{flag}?)"));
            }
            if let Some(tip) = option.as_ref().filter(|_| several_letters).and_then(|o| refuse_glued(command, flag, o))
            {
                return Err(format!("unknown flag {flag}{tip}"));
            }
        }
        if let Some(long) = &replaced {
            typed.0.push((long.clone(), flag.to_owned()));
            out.push(value.map_or_else(|| OsString::from(long), |v| format!("{long}={v}").into()));
        } else {
            if let Some(long) = option.as_ref().and_then(|o| o.long.clone()).filter(|l| l != flag) {
                let shown = if flag.starts_with("--") { flag } else { flag.get(..2).unwrap_or(flag) };
                typed.0.push((long, shown.to_owned()));
            }
            out.push(arg.clone());
        }
        let attached = value.is_some() || (replaced.is_none() && several_letters);
        if option.is_some_and(|o| o.takes_value) && !attached {
            out.extend(argv.next());
        }
    }
    out.extend(argv);
    Ok((out, typed))
}

/// Why what follows the first letter of `flag` is not taken for the value of the option of that letter; `None` if it is.
fn refuse_glued(command: &Command, flag: &str, option: &Found) -> Option<String> {
    let rest: String = flag.chars().skip(2).collect();
    let short: String = flag.chars().take(2).collect();
    if option.takes_value && is_number(&rest) && takes_number(command, &short) {
        return None;
    }
    let tip = match similar(command, &format!("-{flag}")) {
        Some(other) => format!(" (did you mean {other}?)"),
        None if option.takes_value => format!("; a value stands behind a blank, as in {short} {rest}"),
        None => String::new(),
    };
    Some(tip)
}

/// Whether a text is a number, or several with commas.
fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['-', '+']);
    digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || ",.eE-+".contains(c))
}

/// Whether an option's value is a number, as its name in the help text says.
fn takes_number(command: &Command, flag: &str) -> bool {
    let names = option(command, flag).and_then(|a| a.get_value_names()).unwrap_or_default();
    names.iter().any(|name| ["N", "N,...", "X", "T", "K", "MS", "SEED"].contains(&name.as_str()))
}

struct Found {
    long: Option<String>,
    takes_value: bool,
}

/// The option of a command that a flag names; of several letters behind one dash the first counts.
fn option<'c>(command: &'c Command, flag: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|a| {
        if let Some(name) = flag.strip_prefix("--") {
            return a.get_long() == Some(name) || a.get_all_aliases().is_some_and(|all| all.contains(&name));
        }
        a.get_short().is_some() && flag.chars().nth(1) == a.get_short()
    })
}

fn find(command: &Command, flag: &str) -> Option<Found> {
    option(command, flag)
        .map(|a| Found { long: a.get_long().map(|l| format!("--{l}")), takes_value: a.get_action().takes_values() })
}

/// Whether a command has this flag, as it is typed.
pub fn has(command: &Command, flag: &str) -> bool {
    let long = SHORT_FORMS.iter().find(|(short, _)| *short == flag).map_or(flag, |(_, long)| *long);
    (long.starts_with("--") || long.chars().count() == 2) && option(command, long).is_some()
}

/// Puts the short forms into a help text, right-aligned in the column of the one-letter flags.
pub fn show(help: &str) -> String {
    let mut out = help.to_owned();
    for (short, long) in SHORT_FORMS {
        // `-no-cnv` is only another spelling.
        if short == "-no-cnv" {
            continue;
        }
        let shown = format!("{:>6}", format!("{short}, "));
        // What a longer name takes of the line, the space behind the flag and its value gives.
        let gap = " ".repeat(shown.len() - 6);
        let with = |line: &str| match line.strip_prefix("      ").and_then(|flag| flag.strip_prefix(long)) {
            Some(rest) if rest.is_empty() || rest.starts_with(' ') => {
                format!("{shown}{long}{}", rest.replacen(&format!("{gap}  "), "  ", 1))
            }
            _ => line.to_owned(),
        };
        out = out.split('\n').map(with).collect::<Vec<String>>().join("\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn command() -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let value = |name: &'static str| Arg::new(name).long(name).action(ArgAction::Set);
        Command::new("x")
            .args([
                value("n-gpu-layers").value_name("N"),
                value("predict").short('n').value_name("N"),
                value("prompt").short('p').alias("text"),
                flag("no-cnv"),
                value("ubatch-size").value_name("N"),
                flag("verbose").short('v'),
                value("seed").short('s').value_name("SEED"),
            ])
            .subcommand(Command::new("plan").arg(value("shape").short('S')))
    }

    fn run(args: &[&str]) -> (Vec<String>, Typed) {
        let (out, typed) = expand(args.iter().map(OsString::from), &command()).unwrap();
        (out.into_iter().map(|a| a.into_string().unwrap()).collect(), typed)
    }

    #[test]
    fn short_forms_become_long_ones() {
        assert_eq!(
            run(&["x", "-ngl", "99", "-ub=64", "-no-cnv"]).0,
            ["x", "--n-gpu-layers", "99", "--ubatch-size=64", "--no-cnv"]
        );
    }

    #[test]
    fn values_are_left_alone() {
        for args in [["x", "-p", "-ngl"], ["x", "--prompt", "-ngl"], ["x", "--text", "-ub"], ["x", "--", "-ngl"]] {
            assert_eq!(run(&args).0, args);
        }
        assert_eq!(run(&["x", "plan", "-S", "-ngl"]).0, ["x", "plan", "-S", "-ngl"]);
    }

    #[test]
    fn only_numbers_are_glued() {
        let glued = ["x", "-ngl99", "-ub256", "-n5", "-s-1", "-n", "7"];
        let taken = ["x", "--n-gpu-layers=99", "--ubatch-size=256", "-n5", "-s-1", "-n", "7"];
        assert_eq!(run(&glued).0, taken);
        let refused = |flag: &str| expand(["x", flag].map(OsString::from), &command()).unwrap_err();
        for (flag, expected) in [
            ("-phi", "unknown flag -phi; a value stands behind a blank, as in -p hi"),
            ("-p7", "unknown flag -p7; a value stands behind a blank, as in -p 7"),
            ("-n5x", "unknown flag -n5x; a value stands behind a blank, as in -n 5x"),
            ("-nglx", "unknown flag -nglx; "),
            ("-ngl9x", "unknown flag -ngl9x; "),
            ("-vv", "unknown flag -vv"),
            ("-v1", "unknown flag -v1"),
            ("-vn", "unknown flag -vn"),
            ("-promp", "unknown flag -promp (did you mean --prompt?)"),
        ] {
            assert!(refused(flag).starts_with(expected), "{flag}: {}", refused(flag));
        }
        // Others are clap's to refuse.
        assert_eq!(run(&["x", "-gpu"]).0, ["x", "-gpu"]);
    }

    #[test]
    fn messages_name_the_flag_as_typed() {
        let typed = run(&["x", "-ngl", "1", "-n5"]).1;
        assert_eq!(
            typed.restore("bad --n-gpu-layers <N> and --predict, --predict-more"),
            "bad -ngl <N> and -n, --predict-more"
        );
        assert_eq!(run(&["x", "--predict", "5"]).1.restore("--predict"), "--predict");
        assert_eq!(run(&["x", "--text", "5"]).1.restore("--prompt <TEXT>"), "--text <TEXT>");
    }

    #[test]
    fn help_shows_short_forms() {
        assert_eq!(
            show("      --n-gpu-layers <N>  a\n      --ubatch-size <N>\n"),
            "-ngl, --n-gpu-layers <N>  a\n -ub, --ubatch-size <N>\n"
        );
        assert_eq!(
            show("      --n-cpu-moe <N>     a\n      --cpu-moe          b\n"),
            "-ncmoe, --n-cpu-moe <N>   a\n-cmoe, --cpu-moe         b\n"
        );
    }
}
