//! The node agent and the speaker against a scheduler that only follows a script.

mod node;
mod resume;
mod script;
mod speaker;
