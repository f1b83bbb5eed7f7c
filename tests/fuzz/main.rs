//! Every fuzz target of `fuzz/`, without a fuzzer: over its corpus, over what was found once
//! (`fuzz/regressions`), and over a few thousand changes to both.
//!
//! `UPDATE_CORPUS=1 cargo test --test fuzz` writes the seeds that the encoders make.

#[path = "../../fuzz/src/lib.rs"]
mod bodies;
mod replay;
mod seeds;
