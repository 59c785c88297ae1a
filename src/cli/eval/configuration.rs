//! `--config`: a way to run prompts, written as flags.

use clap::Parser;

use crate::cli::options::SptsArgs;

/// What help texts say of configurations.
pub(super) const CONFIGURATIONS: &str =
    "A configuration is dense, or what --schedule takes, then more flags of token skipping; NAME= before it names it:
  --config dense --config paper --config 'mild=0.5,0.4,0.3,0.2 --probe-queries 16 --pool max:7'";

/// A way to run a prompt.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    pub(super) name: String,
    pub(super) spts: SptsArgs,
}

#[derive(Parser)]
#[command(name = "--config", no_binary_name = true, disable_help_flag = true)]
struct ConfigurationFlags {
    #[command(flatten)]
    spts: SptsArgs,
}

/// Parses the value of `--config`.
pub(super) fn configuration(text: &str) -> Result<Configuration, String> {
    let is_name = |s: &str| {
        !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_ ".contains(c)) && !s.starts_with('-')
    };
    let (name, what) = text.split_once('=').filter(|(name, _)| is_name(name)).unwrap_or((text, text));
    let mut words: Vec<&str> = what.split_whitespace().collect();
    match words.first() {
        None => return Err("expected dense, a schedule, or flags".into()),
        Some(&"dense") => words[0] = "--no-spts",
        Some(first) if !first.starts_with('-') => words.insert(0, "--schedule"),
        Some(_) => {}
    }
    let flags = ConfigurationFlags::try_parse_from(words).map_err(|e| crate::cli::usage::one_line(&e))?;
    Ok(Configuration { name: name.trim().to_owned(), spts: flags.spts })
}

/// The configurations asked for, or those of these names.
pub(super) fn or_default(asked: &[Configuration], names: &[&str]) -> Vec<Configuration> {
    match asked {
        [] => names.iter().filter_map(|name| configuration(name).ok()).collect(),
        asked => asked.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::Queries;

    #[test]
    fn configurations() {
        let c = configuration("dense").unwrap();
        assert_eq!((c.name.as_str(), c.spts.no_spts), ("dense", true));
        let c = configuration("mild=0.5,0.4,0.3,0.2:0.03 --probe-queries 16").unwrap();
        assert_eq!(
            (c.name.as_str(), c.spts.schedule.as_deref(), c.spts.probe_queries),
            ("mild", Some("0.5,0.4,0.3,0.2:0.03"), Some(Queries::Last(16)))
        );
        let c = configuration("--keep=2").unwrap();
        assert_eq!((c.name.as_str(), c.spts.keep), ("--keep=2", Some(2.0)));
        for bad in ["", "x=", "paper --no-such-flag", "dense --keep 2"] {
            let message = configuration(bad).unwrap_err();
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
