//! The Dockerfile language: text → instructions and findings, the expansion of words, and the lint
//! rules.
//!
//! It does no input or output, knows nothing of images or of the build graph, and never panics
//! whatever the text is: [`parse`] gives an AST and findings for any bytes, in time linear in their
//! number. Messages are those of the stock frontend, because people and scripts look for them.
//!
//! Reading goes in two steps. [`parse`] joins lines, finds directives and here-documents and cuts
//! instructions into words; [`Dockerfile::read`] goes on to typed instructions in stages. Variables
//! stay in the text until a build knows them: [`shell::Lexer`] expands them.

mod arguments;
pub mod csv;
mod directive;
mod flags;
mod heredoc;
mod instruction;
pub mod lint;
mod mount;
mod parser;
mod pattern;
pub mod quote;
#[cfg(test)]
mod robust_tests;
pub mod shell;
#[cfg(test)]
mod shell_table_tests;
pub mod size;
mod source;
pub mod suggest;
mod understand;

pub use arguments::Arguments;
pub use directive::{Directive, Syntax, check_directive, detect_syntax};
pub use heredoc::Heredoc;
pub use instruction::{
    AddInstruction, ArgDeclaration, CommandLine, CopyInstruction, Device, Dockerfile, GlobalArgs,
    Healthcheck, InlineFile, Instruction, KeyValue, Kind, RunInstruction, RunNetwork,
    SourceContent, SourcesAndDest, Stage,
};
pub use mount::{Mount, MountSpec, MountType, Sharing};
pub use parser::{Ast, Node, parse};
pub use source::{Diagnostic, Lines, Severity, SyntaxError};
pub use understand::read_trigger;
