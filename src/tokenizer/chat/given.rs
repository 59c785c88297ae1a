//! What a caller gives a chat template: another source in place of the model's, and variables of its own.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{CHATML, ChatTemplate};
use crate::printable::printable;
use crate::tokenizer::TokenizerError;

/// Templates that are known by name.
const KNOWN: [(&str, &str); 1] = [("chatml", CHATML)];
/// More bytes than any template has.
const MAX_BYTES: u64 = 1 << 20;
/// What the conversation decides.
const RESERVED: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];
/// By this variable templates of models that can think ask whether they should.
const THINKING: &str = "enable_thinking";

/// Variables that a chat template sees besides the conversation, such as `enable_thinking`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateVariables(pub(super) Arc<Map<String, Value>>);

impl TemplateVariables {
    /// Reads them from a JSON object: its keys are their names.
    ///
    /// # Errors
    /// The text is no JSON object, or one of its keys is decided by the conversation (`messages`, `add_generation_prompt`,
    /// `bos_token`, `eos_token`).
    pub fn parse(json: &str) -> Result<TemplateVariables, TokenizerError> {
        let bad = |problem| TokenizerError::TemplateVariables { problem };
        let value: Value = serde_json::from_str(json).map_err(|e| bad(format!("no JSON: {e}")))?;
        let Value::Object(variables) = value else {
            return Err(bad("expected a JSON object, as in {\"enable_thinking\": false}".into()));
        };
        match RESERVED.into_iter().find(|name| variables.contains_key(*name)) {
            Some(name) => Err(bad(format!("{name} is what the conversation says"))),
            None => Ok(TemplateVariables(Arc::new(variables))),
        }
    }
}

impl ChatTemplate {
    /// Another template in place of the model's: `what` is a file, a known name (`chatml`), or the Jinja source itself. BOS, EOS
    /// and variables stay.
    ///
    /// # Errors
    /// `what` is no file, no known name and no Jinja source, or the file cannot be read.
    pub fn replaced_by(&self, what: &str) -> Result<ChatTemplate, TokenizerError> {
        let path = Path::new(what);
        let (name, source) = if path.exists() && !path.is_dir() {
            let source = read(path).map_err(|source| TokenizerError::TemplateFile { file: printable(what), source })?;
            (printable(what), source)
        } else if let Some((name, source)) = KNOWN.iter().find(|(name, _)| *name == what) {
            ((*name).to_owned(), (*source).to_owned())
        } else if what.contains("{{") || what.contains("{%") {
            ("given as text".to_owned(), what.to_owned())
        } else {
            let known = KNOWN.map(|(name, _)| name).join(", ");
            return Err(TokenizerError::UnknownTemplate { found: printable(what), known });
        };
        Ok(ChatTemplate { source: source.into(), builtin: false, given: Some(name), ..self.clone() })
    }

    /// The template with further variables. One that has a value already gets the new one.
    pub fn with_variables(mut self, variables: &TemplateVariables) -> ChatTemplate {
        let all = Arc::make_mut(&mut self.variables.0);
        all.extend(variables.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        self
    }

    /// The template with thinking switched off: the variable `enable_thinking`, by which most templates ask, is false.
    pub fn without_thinking(mut self) -> ChatTemplate {
        Arc::make_mut(&mut self.variables.0).insert(THINKING.to_owned(), false.into());
        self
    }

    /// Names of the variables that its source does not mention, and which so change nothing.
    pub fn unused_variables(&self) -> Vec<&str> {
        let is_mentioned = |name: &str| {
            let is_part_of_name = |c: char| c == '_' || c.is_alphanumeric();
            self.source.match_indices(name).any(|(at, _)| {
                let (before, after) = (&self.source[..at], &self.source[at + name.len()..]);
                !before.ends_with(is_part_of_name) && !after.starts_with(is_part_of_name)
            })
        };
        self.variables.0.keys().map(String::as_str).filter(|name| !is_mentioned(name)).collect()
    }

    /// The name of the template that was given in place of the model's, if one was.
    pub fn given(&self) -> Option<&str> {
        self.given.as_deref()
    }

    /// An error of this template, which blames the model's file only if it is the model's.
    pub(super) fn blame(&self, e: TokenizerError) -> TokenizerError {
        let Some(name) = self.given.clone() else {
            // ChatML is ours.
            return match self.file.as_deref().filter(|_| !self.builtin) {
                Some(file) => e.in_file(file),
                None => e,
            };
        };
        let reason = match e {
            TokenizerError::Template { reason } => reason,
            TokenizerError::Refused { reason } => format!("it refuses this conversation: {reason}"),
            TokenizerError::MessageLost { role } => format!("the text that it writes lacks the {role} message"),
            other => return other,
        };
        TokenizerError::GivenTemplate { name, reason }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other(format!("longer than {MAX_BYTES} bytes, which no template is"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Message;

    fn written(template: &ChatTemplate) -> String {
        template.apply(&[Message::new("user", "q")], true).unwrap()
    }

    #[test]
    fn variables_are_json_objects() {
        for good in ["{}", "{\"enable_thinking\": false}", " {\"a\": [1, {\"b\": null}]} "] {
            TemplateVariables::parse(good).unwrap();
        }
        for (bad, what) in [
            ("", "no JSON"),
            ("{", "no JSON"),
            ("{enable_thinking: false}", "no JSON"),
            ("[]", "expected a JSON object"),
            ("true", "expected a JSON object"),
            ("{\"messages\": []}", "messages is what the conversation says"),
            ("{\"x\": 1, \"bos_token\": \"\"}", "bos_token is"),
        ] {
            let e = TemplateVariables::parse(bad).unwrap_err().to_string();
            assert!(e.contains(what) && !e.contains('\n'), "{bad}: {e}");
        }
    }

    #[test]
    fn a_template_sees_its_variables() {
        let template = ChatTemplate::new(
            "{{ messages[0].content }}{{ n + 1 }}{{ list[1].a }}{{ enable_thinking }}{{ tools is none }}",
            "",
            "",
        );
        let variables = |json| TemplateVariables::parse(json).unwrap();
        let first = template.with_variables(&variables(r#"{"n": 1, "list": [0, {"a": "x"}], "enable_thinking": true}"#));
        assert_eq!(written(&first), "q2xTrueTrue");
        let second = first.with_variables(&variables(r#"{"n": 2, "tools": ["t"]}"#)).without_thinking();
        assert_eq!(written(&second), "q3xFalseFalse");
        assert_eq!(second.unused_variables(), [""; 0]);
        let unused = second.with_variables(&variables(r#"{"lis": 1, "thinking": 1, "content": 1}"#));
        assert_eq!(unused.unused_variables(), ["lis", "thinking"]);
    }

    #[test]
    fn templates_are_files_names_or_text() {
        let model = ChatTemplate::new("m", "<s>", "").without_thinking();
        assert_eq!(model.given(), None);
        let chatml = model.replaced_by("chatml").unwrap();
        assert_eq!((chatml.source(), chatml.given(), chatml.is_builtin()), (CHATML, Some("chatml"), false));
        assert_eq!(chatml.unused_variables(), [THINKING]);
        let text = model.replaced_by("{{ bos_token }}{{ messages[0].content }}").unwrap();
        assert_eq!(written(&text), "<s>q");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.jinja");
        std::fs::write(&path, "[{{ messages[0].content }}]").unwrap();
        let file = model.replaced_by(path.to_str().unwrap()).unwrap();
        assert_eq!((written(&file), file.given()), ("[q]".to_owned(), path.to_str()));

        std::fs::write(&path, b"\xff").unwrap();
        let e = model.replaced_by(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(e.contains("own.jinja: cannot read"), "{e}");
        for unknown in ["chat-ml", "", dir.path().to_str().unwrap(), "no/such.jinja"] {
            let e = model.replaced_by(unknown).unwrap_err().to_string();
            assert!(e.contains("expected a file, a known name (chatml)"), "{e}");
        }
        // What is wrong with it is not the model's fault.
        let e = model.replaced_by("{{ raise_exception('no') }}").unwrap();
        let e = e.apply(&[Message::new("user", "q")], true).unwrap_err().to_string();
        assert_eq!(e, "chat template given as text: it refuses this conversation: no");
    }
}
