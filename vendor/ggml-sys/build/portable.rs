//! (to come)
use crate::Result;
use crate::archive::Library;
use crate::cache::Cache;
use crate::source::Source;
pub fn supported() -> bool {
    false
}
pub fn backend(source: &Source, cache: &Cache) -> Result<Library> {
    crate::cpu::backend(source, cache)
}
