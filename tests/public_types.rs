//! What programs that embed the library count on: types that go from thread to thread, and can be printed. The compiler alone
//! checks it: where a type lost such a trait, this file would not compile, and no test here fails when it runs.

use std::fmt::Debug;

fn is_sent<T: Send>() {}
fn is_shared<T: Send + Sync>() {}
fn is_shown<T: Debug>() {}

#[test]
fn go_from_thread_to_thread() {
    is_shared::<spts::Model>();
    is_shared::<spts::ModelFile>();
    is_shared::<spts::Tokenizer>();
    is_shared::<spts::ChatTemplate>();
    is_shared::<spts::TemplateVariables>();
    is_shared::<spts::Message>();
    is_shared::<spts::ChatPrompt>();
    is_shared::<spts::StopStrings>();
    is_shared::<spts::ModelOverrides>();
    is_shared::<spts::MetadataOverride>();
    is_shared::<spts::Sidecar>();
    is_shared::<spts::Schedule>();
    is_shared::<spts::SessionOptions>();
    is_shared::<spts::DocumentFile>();
    is_shared::<spts::Plan>();
    is_shared::<spts::Error>();
    is_sent::<spts::ModelOptions>();
    is_sent::<spts::Session>();
    is_sent::<spts::Sampler>();
    is_sent::<spts::Generation>();
    is_sent::<spts::Answer<'_>>();
    is_sent::<spts::StreamDecoder<'_>>();
    is_sent::<spts::StopFilter>();
}

#[test]
fn can_be_printed() {
    is_shown::<spts::Model>();
    is_shown::<spts::ModelFile>();
    is_shown::<spts::ModelOptions>();
    is_shown::<spts::Tokenizer>();
    is_shown::<spts::ModelOverrides>();
    is_shown::<spts::MetadataOverride>();
    is_shown::<spts::ChatTemplate>();
    is_shown::<spts::TemplateVariables>();
    is_shown::<spts::Message>();
    is_shown::<spts::ChatPrompt>();
    is_shown::<spts::StopStrings>();
    is_shown::<spts::StopFilter>();
    is_shown::<spts::Answer<'_>>();
    is_shown::<spts::Sidecar>();
    is_shown::<spts::Schedule>();
    is_shown::<spts::Session>();
    is_shown::<spts::SessionOptions>();
    is_shown::<spts::Document<'_>>();
    is_shown::<spts::DocumentFile>();
    is_shown::<spts::Generation>();
    is_shown::<spts::GenerateOptions>();
    is_shown::<spts::PrefillReport>();
    is_shown::<spts::Sampler>();
    is_shown::<spts::StreamDecoder<'_>>();
    is_shown::<spts::Plan>();
}
