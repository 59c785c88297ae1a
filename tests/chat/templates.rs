//! Templates that change messages, lose them, or are broken, and the errors that they give.

use spts::tokenizer::{ChatTemplate, Message, TokenizerError};

use crate::models::{changed, content, controls, model, render, spelled, user};
use crate::support::chat::with_template;

#[test]
fn templates_that_change_messages() {
    let (t, _) = model("llama");
    let encode = |source: &str, text: &str| ChatTemplate::new(source, "", "").encode(&t, &user(text), true).unwrap();
    let one = |change: &str| {
        format!("<|im_start|>{{% for m in messages %}}{{{{ m.content{change} }}}}{{% endfor %}}<|im_end|>")
    };
    for (change, text, expected) in [
        (" | upper", "the <|im_end|>", "THE <|IM_END|>"),
        (" | lower", "the <|IM_END|>", "the <|im_end|>"),
        (".replace('/no_think', '')", "a<|im_/no_thinkend|>b", "a<|im_end|>b"),
        ("[:1] + m.content[1:]", "<|im_end|>", "<|im_end|>"),
        (" | replace('the', 'a')", " the <|im_end|> ", " a <|im_end|> "),
        (" | tojson", "<|im_end|>\n", "\"<|im_end|>\\n\""),
        (" ~ m.content", "<|im_end|>", "<|im_end|><|im_end|>"),
    ] {
        let prompt = encode(&one(change), text);
        assert_eq!(prompt.text, format!("<|im_start|>{expected}<|im_end|>"), "{change}");
        assert_eq!(controls(&t, &prompt), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "{change}");
    }
    // A template that looks into a message gets to see it.
    let looking = "{% for m in messages %}<|im_start|>{% if m.content.startswith('<tool>') %}T{% endif %}\
        {{ m.content }}<|im_end|>{% if m.content.endswith('/think') %}<|im_start|>{% endif %}{% endfor %}";
    let prompt = encode(looking, "<tool> <|im_end|>");
    assert_eq!(prompt.text, "<|im_start|>T<tool> <|im_end|><|im_end|>");
    assert_eq!(controls(&t, &prompt), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    assert_eq!(content(&t, &prompt, &prompt.contents[0]), "<tool> <|im_end|>");
}

#[test]
fn messages_as_parts() {
    let (t, _) = model("llama");
    let parts = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p['type'] == 'text' %}{{ p['text'] }}\
        {% endif %}{% endfor %}<|im_end|>\n{% endfor %}";
    let demanding = parts.replace(
        "<|im_start|>",
        "{% if m.content is string %}{{ raise_exception('parts only') }}{% endif %}<|im_start|>",
    );
    for source in [parts, &demanding] {
        let template = ChatTemplate::new(source, "", "");
        let prompt = template.encode(&t, &[Message::about("the <|im_end|>", "rain?")], true).unwrap();
        assert_eq!(prompt.text, "<|im_start|>user\nthe <|im_end|>\n\nrain?<|im_end|>\n");
        assert_eq!(spelled(&t, &prompt.tokens[prompt.question.clone().unwrap()]), "rain?");
        assert_eq!(controls(&t, &prompt).len(), 3);
    }
    // Either will do: a string.
    let both = "{% for m in messages %}{% if m.content is string %}s{{ m.content }}{% else %}p{{ m.content[0].text }}{% endif %}{% endfor %}";
    assert_eq!(ChatTemplate::new(both, "", "").encode(&t, &user("x"), true).unwrap().text, "sx");
}

#[test]
fn a_lost_message_is_an_error() {
    let (t, _) = model("llama");
    for source in ["<|im_start|>user\n<|im_end|>", "{{ messages[0].role }}", "{{ messages[0].content[:0] }}"] {
        let e = ChatTemplate::new(source, "", "").encode(&t, &user("the rain"), true).unwrap_err();
        assert!(matches!(&e, TokenizerError::MessageLost { role } if role == "user"), "{e}");
        assert!(e.to_string().contains("runs without it"));
    }
    // As a whole.
    let long = "the rain in here ".repeat(20) + "</think> the rest";
    for change in ["[-60:]", "[:60]", "[1:]", ".split('rest')[0]", ".split('the ')[-1]"] {
        let source =
            format!("{{% for m in messages %}}<|im_start|>{{{{ m.content{change} }}}}<|im_end|>{{% endfor %}}");
        for messages in [user(&long), vec![Message::about(&long, "why?")]] {
            let e = match ChatTemplate::new(&source, "", "").encode(&t, &messages, true) {
                Err(e) => e,
                Ok(prompt) => panic!("{change}: {}", prompt.text),
            };
            assert!(matches!(&e, TokenizerError::MessageLost { role } if role == "user"), "{change}: {e}");
        }
    }
    // What is short enough is whole.
    for change in ["[-60:]", "[:60]", " | trim", ".strip()"] {
        let source =
            format!("{{% for m in messages %}}<|im_start|>{{{{ m.content{change} }}}}<|im_end|>{{% endfor %}}");
        let prompt = ChatTemplate::new(&source, "", "").encode(&t, &user(" the <|im_end|> "), true).unwrap();
        assert_eq!(prompt.text.replace(' ', ""), "<|im_start|>the<|im_end|><|im_end|>", "{change}");
        assert_eq!(controls(&t, &prompt).len(), 3, "{change}");
    }
    // A template that would cut a document where it spells a mark of thoughts does not see the mark.
    let source = "<|im_start|>{{ messages[0].content.split('</think>')[-1] }}<|im_end|>";
    let prompt = ChatTemplate::new(source, "", "").encode(&t, &user(&long), true).unwrap();
    assert_eq!(prompt.text, format!("<|im_start|>{long}<|im_end|>"));
    assert_eq!(content(&t, &prompt, &prompt.contents[0]), long);
    // A list of parts is no text.
    let parts = "<|im_start|>{{ messages[0].content[:60] }}<|im_end|>";
    for source in [parts, &parts.replace("[:60]", "[:60] | string"), &parts.replace("[:60]", "[:60] | tojson")] {
        let e = ChatTemplate::new(source, "", "").encode(&t, &user(&long), true).unwrap_err();
        assert!(matches!(&e, TokenizerError::MessageLost { .. }), "{e}");
    }

    let last = ChatTemplate::new("{{ messages[-1].content }}", "", "");
    let e = last.encode(&t, &[Message::new("system", "be brief"), Message::new("user", "x")], true).unwrap_err();
    assert!(matches!(&e, TokenizerError::MessageLost { role } if role == "system"), "{e}");
    assert!(e.to_string().contains("put that text into the first user message"), "{e}");
}

#[test]
fn an_empty_template_is_none() {
    for source in ["", " \n"] {
        let (_, template) = changed("llama", "empty", with_template(source));
        assert!(template.is_builtin());
    }
}

/// As other errors of a model do.
#[test]
fn errors_of_the_models_template_name_its_file() {
    for (source, expected) in [
        ("{% if %}", "broken.gguf: key `tokenizer.chat_template`: line 1: "),
        ("\n{{ 1 // 0 }}", "broken.gguf: key `tokenizer.chat_template`: line 2: "),
        ("{{ raise_exception('no') }}", "broken.gguf: the model's chat template refuses this conversation: no"),
        ("nothing", "broken.gguf: key `tokenizer.chat_template`: the text that it writes lacks the user message"),
    ] {
        let (tokenizer, template) = changed("llama", "broken.gguf", with_template(source));
        let e = template.encode(&tokenizer, &user("x"), true).unwrap_err().to_string();
        assert!(e.starts_with(expected), "{e}");
        // One that was given is to blame itself.
        let given = template.replaced_by("{{ 1 // 0 }}").unwrap();
        let e = given.encode(&tokenizer, &user("x"), true).unwrap_err().to_string();
        assert!(e.starts_with("chat template given as text: line 1"), "{e}");
    }
}

#[test]
fn refusals_and_breakage_are_told_apart() {
    let refusing =
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not \x1b[31m supported') }}{% endif %}";
    let e = ChatTemplate::new(refusing, "", "").apply(&[Message::new("system", "x")], true);
    let Err(TokenizerError::Refused { reason }) = e else { panic!("{e:?}") };
    assert!(
        reason.contains("the first user message") && reason.contains("\\u{1b}") && !reason.contains('\x1b'),
        "{reason}"
    );
    assert!(matches!(render("{% if %}"), Err(TokenizerError::Template { .. })));
}
