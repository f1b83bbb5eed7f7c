//! Rust sources as text: words with their lines, the tree of modules, the paths that are named.
//!
//! It knows as much of the language as the rules need. Where it cannot tell it sees too much
//! rather than too little: what a macro would make of its words is read as it is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// One word, mark or literal. Strings are only their first quote.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    pub line: usize,
    pub text: &'static str,
}

#[derive(Clone)]
pub struct Source {
    /// From the root of the repository.
    pub path: &'static str,
    pub text: &'static str,
    /// Without comments.
    pub all: Vec<Token>,
    /// Without comments and without what is compiled only for tests.
    pub live: Vec<Token>,
    /// Each `//` comment with its line.
    pub comments: Vec<(usize, &'static str)>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let text: &'static str = text.to_owned().leak();
        let (mut all, mut comments) = (Vec::new(), Vec::new());
        let (mut rest, mut line) = (text, 1);
        while !rest.is_empty() {
            let (kind, len) = lexeme(rest);
            let (this, after) = rest.split_at(len);
            match kind {
                Kind::Space => {}
                Kind::Comment => comments.push((line, this)),
                Kind::Literal => all.push(Token { line, text: "\"" }),
                Kind::Word => all.push(Token { line, text: this }),
            }
            line += this.matches('\n').count();
            rest = after;
        }
        Self { path: path.to_owned().leak(), text, live: without_tests(&all), all, comments }
    }

    /// The names from the root of the crate to this file.
    pub fn modules(&self) -> Vec<&'static str> {
        let path = self.path.strip_prefix("src/").unwrap_or("").trim_end_matches(".rs");
        let mut names: Vec<_> = path.split('/').collect();
        names.pop_if(|last| ["mod", "lib", "main"].contains(last));
        names
    }

    /// The module of the table it belongs to; empty outside of `src`.
    pub fn module(&self) -> String {
        let path = self.path.strip_prefix("src/").unwrap_or("").trim_end_matches(".rs");
        path.split('/').next().unwrap_or("").to_owned()
    }
}

const TO_SEMICOLON: [&str; 5] = ["use", "const", "static", "type", "let"];
const TO_BRACE: [&str; 10] =
    ["fn", "mod", "struct", "enum", "union", "impl", "trait", "unsafe", "async", "macro_rules"];

enum Kind {
    Space,
    Comment,
    Literal,
    /// Also marks: `::`, or one character.
    Word,
}

/// What the text begins with, and its length.
fn lexeme(rest: &str) -> (Kind, usize) {
    let in_word = |c: char| c == '_' || c.is_alphanumeric();
    let end_of = |tail: &str, end: &str| tail.find(end).map_or(tail.len(), |at| at + end.len());
    let body = rest.strip_prefix(['b', 'c']).unwrap_or(rest);
    let hashes = body.strip_prefix('r').map(|b| b.len() - b.trim_start_matches('#').len());
    let first = rest.chars().next().unwrap_or(' ');
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        let mut depth = 0;
        for (at, two) in rest.as_bytes().windows(2).enumerate() {
            depth += i32::from(two == b"/*") - i32::from(two == b"*/");
            if depth == 0 {
                return (Kind::Space, at + 2);
            }
        }
        return (Kind::Space, rest.len());
    }
    if let Some(n) = hashes.filter(|n| body[1 + n..].starts_with('"')) {
        let open = rest.len() - body.len() + n + 2;
        return (Kind::Literal, open + end_of(&rest[open..], &format!("\"{}", "#".repeat(n))));
    }
    let quote = body.chars().next().filter(|c| ['"', '\''].contains(c));
    let is_lifetime = |tail: &str| !tail.starts_with('\\') && tail.chars().nth(1) != Some('\'');
    if let Some(quote) = quote.filter(|q| *q == '"' || !is_lifetime(&body[1..])) {
        let mut escaped = false;
        let end = body[1..].find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        return (Kind::Literal, end.map_or(rest.len(), |at| rest.len() - body.len() + at + 2));
    }
    if first.is_whitespace() {
        return (Kind::Space, first.len_utf8());
    }
    let word = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
    let mark = if rest.starts_with("::") { 2 } else { first.len_utf8() };
    (Kind::Word, if word > 0 { word } else { mark })
}

pub fn sources() -> Vec<Source> {
    fn read(root: &Path, dir: &Path, into: &mut Vec<Source>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(root, &path, into);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
                into.push(Source::new(&name, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let dirs = ["src", "tests", "benches", "fuzz/src", "fuzz/targets"];
    dirs.iter().for_each(|dir| read(root, &root.join(dir), &mut sources));
    sources.sort_by(|a, b| a.path.cmp(b.path));
    let reached = reach(&sources, |source| &source.all);
    let live = reach(&sources, |source| &source.live);
    assert!(live.len() > 50, "the sources were not found");
    // Files that only tests reach are tests.
    let tests = |source: &&mut Source| reached.contains(source.path) && !live.contains(source.path);
    sources.iter_mut().filter(tests).for_each(|source| source.live.clear());
    sources
}

pub fn begins(tokens: &[Token], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.text == *text)
}

fn is_word(token: &Token) -> bool {
    token.text.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// Where the bracket that opens at `open` is closed.
pub fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        depth += i32::from(["(", "[", "{"].contains(&token.text));
        depth -= i32::from([")", "]", "}"].contains(&token.text));
        if depth == 0 {
            return at;
        }
    }
    tokens.len()
}

fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut live = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let attribute = tokens[at..].get(..6).unwrap_or_default();
        if begins(attribute, &["#", "[", "cfg", "(", "test", ")"])
            || begins(attribute, &["#", "[", "cfg", "(", "all", "("])
                && tokens[at + 6].text == "test"
        {
            at = end_of_item(tokens, closing(tokens, at + 1) + 1);
        } else {
            live.push(tokens[at]);
            at += 1;
        }
    }
    live
}

/// The first token after the item, statement, field or variant at `at`.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    while begins(&tokens[at..], &["#", "["]) {
        at = closing(tokens, at + 1) + 1;
    }
    if begins(&tokens[at..], &["pub"]) {
        let limited = begins(&tokens[at + 1..], &["("]);
        at = if limited { closing(tokens, at + 1) + 1 } else { at + 1 };
    }
    let first = tokens.get(at).map_or("", |token| token.text);
    let is_const_fn = begins(&tokens[at..], &["const", "fn"]);
    let to_semicolon = TO_SEMICOLON.contains(&first) && !is_const_fn;
    let to_comma = !TO_SEMICOLON.contains(&first) && !TO_BRACE.contains(&first);
    while at < tokens.len() {
        match tokens[at].text {
            ";" => return at + 1,
            "," if to_comma => return at + 1,
            "}" | ")" | "]" => return at,
            "{" if !to_semicolon && !to_comma => return closing(tokens, at) + 1,
            "{" | "(" | "[" => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    at
}

/// For each token the inline modules it is in.
fn inline_modules(tokens: &[Token]) -> Vec<Vec<&'static str>> {
    let mut open: Vec<(&'static str, usize)> = Vec::new();
    let mut inside = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        open.retain(|(_, end)| at < *end);
        inside.push(open.iter().map(|(name, _)| *name).collect());
        if token.text == "mod" && tokens.get(at + 2).is_some_and(|token| token.text == "{") {
            open.push((tokens[at + 1].text, closing(tokens, at + 2)));
        }
    }
    inside
}

pub struct Function {
    pub name: &'static str,
    pub from: usize,
    pub to: usize,
}

pub fn functions(tokens: &[Token]) -> Vec<Function> {
    let mut functions = Vec::new();
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.text == "fn") {
        let name = tokens[at + 1..].iter().find(|token| token.text != "$");
        let Some(name) = name.filter(|name| is_word(name)) else { continue };
        let mut body = at + 1;
        while body < tokens.len() && !["{", ";"].contains(&tokens[body].text) {
            let opens = ["(", "["].contains(&tokens[body].text);
            body = if opens { closing(tokens, body) + 1 } else { body + 1 };
        }
        if let Some(end) = tokens.get(closing(tokens, body)).filter(|end| end.text == "}") {
            functions.push(Function { name: name.text, from: token.line, to: end.line });
        }
    }
    functions
}

/// The paths of the files that `mod` declarations lead to, from the roots.
pub fn reach(sources: &[Source], tokens: fn(&Source) -> &Vec<Token>) -> BTreeSet<&'static str> {
    let by_path: BTreeMap<&'static str, &Source> = sources.iter().map(|s| (s.path, s)).collect();
    let is_root = |path: &&str| {
        let dirs = ["tests/", "benches/", "fuzz/targets/"];
        let inside = dirs.iter().find_map(|dir| path.strip_prefix(dir));
        ["src/lib.rs", "src/main.rs", "fuzz/src/lib.rs"].contains(path)
            || inside.is_some_and(|p| {
                !p.contains('/') || p.matches('/').eq(["/"]) && p.ends_with("/main.rs")
            })
    };
    let mut next: Vec<&'static str> = by_path.keys().copied().filter(is_root).collect();
    let mut reached = BTreeSet::new();
    while let Some(path) = next.pop() {
        if !reached.insert(path) {
            continue;
        }
        let stem = path.trim_end_matches(".rs");
        let parent = stem.rsplit_once('/').map_or("", |(parent, _)| parent);
        let owns_parent = is_root(&path) || stem.ends_with("/mod");
        let base = if owns_parent { parent } else { stem };
        let tokens = tokens(by_path[path]);
        for (at, inline) in inline_modules(tokens).iter().enumerate() {
            if let [Token { text: "mod", .. }, name, Token { text: ";", .. }, ..] = &tokens[at..] {
                let inside: String = inline.iter().map(|m| format!("{m}/")).collect();
                for end in [".rs", "/mod.rs"] {
                    let file = format!("{base}/{inside}{}{end}", name.text);
                    next.extend(by_path.get_key_value(&*file).map(|(path, _)| path));
                }
            }
        }
    }
    reached
}

/// A path that is named somewhere, from the root of its crate; ours begins with `crate`.
#[derive(Debug)]
pub struct Named {
    pub line: usize,
    pub path: Vec<&'static str>,
    /// Whether it begins with a name that a `use` of the file brought.
    pub through_use: bool,
}

/// The paths of this crate that are named, without `crate` in front.
pub fn own_paths(source: &Source) -> impl Iterator<Item = Named> {
    paths(source).into_iter().filter(|named| named.path[0] == "crate").map(|mut named| {
        named.path.remove(0);
        named
    })
}

/// Every path of at least two names, in `use` and elsewhere.
pub fn paths(source: &Source) -> Vec<Named> {
    let tokens = &source.live;
    let inside = inline_modules(tokens);
    let mut brought: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut found = Vec::new();
    let mut used_to = 0;
    for (at, token) in tokens.iter().enumerate() {
        let after = tokens.get(at + 1).map_or("", |next| next.text);
        let before = at.checked_sub(1).map_or("", |at| tokens[at].text);
        let module = || [&source.modules(), &*inside[at]].concat();
        if at < used_to {
            continue;
        }
        if token.text == "use" && after != "<" {
            let mut leaves = Vec::new();
            used_to = use_tree(tokens, at + 1, &[], &mut leaves);
            for (line, path, name) in leaves {
                let (path, through_use) = absolute(&path, &module(), &brought);
                brought.entry(name).or_insert_with(|| path.clone());
                found.push(Named { line, path, through_use });
            }
        } else if is_word(token) && after == "::" && before != "::" {
            let names = tokens[at..].chunks(2).take_while(|pair| is_word(&pair[0]));
            let joined = |pair: &&[Token]| pair.get(1).is_some_and(|mark| mark.text == "::");
            let count = names.clone().take_while(joined).count();
            let path: Vec<_> = names.take(count + 1).map(|pair| pair[0].text).collect();
            let (path, through_use) = absolute(&path, &module(), &brought);
            found.push(Named { line: token.line, path, through_use });
        } else if begins(&tokens[at..], &["extern", "crate", "self"]) {
            found.push(Named { line: token.line, path: vec!["crate"], through_use: false });
        }
    }
    found
}

/// Reads one tree of a `use` into its leaves (line, path, name it brings); where it ends.
fn use_tree(
    tokens: &[Token],
    mut at: usize,
    before: &[&'static str],
    leaves: &mut Vec<(usize, Vec<&'static str>, &'static str)>,
) -> usize {
    let mut path = before.to_vec();
    while at < tokens.len() {
        let token = tokens[at];
        match token.text {
            "::" => at += 1,
            "{" => {
                let end = closing(tokens, at);
                at += 1;
                while at < end {
                    at = use_tree(tokens, at, &path, leaves) + 1;
                }
                return end + 1;
            }
            _ if is_word(&token) || token.text == "*" => {
                path.push(token.text);
                at += 1;
                if tokens.get(at).is_some_and(|next| next.text == "::") {
                    continue;
                }
                path.pop_if(|last| *last == "self" && !before.is_empty());
                let renamed = begins(&tokens[at..], &["as"]);
                let name = if renamed { tokens[at + 1].text } else { path[path.len() - 1] };
                leaves.push((token.line, path, name));
                return if renamed { at + 2 } else { at };
            }
            _ => return at,
        }
    }
    at
}

/// The path from the root of its crate, and whether it began with a name brought by `use`.
fn absolute(
    path: &[&'static str],
    module: &[&'static str],
    brought: &HashMap<&str, Vec<&'static str>>,
) -> (Vec<&'static str>, bool) {
    let ours = |names: &[&'static str]| [&["crate"], names].concat();
    match path[0] {
        "crate" | "utterd" => (ours(&path[1..]), false),
        "self" | "super" => {
            let up = path.iter().take_while(|name| ["self", "super"].contains(*name)).count();
            let supers = path[..up].iter().filter(|name| **name == "super").count();
            let parent = &module[..module.len().saturating_sub(supers)];
            (ours(&[parent, &path[up..]].concat()), false)
        }
        first => match brought.get(first) {
            Some(start) => ([start, &path[1..]].concat(), true),
            None if module.is_empty() => (ours(path), false),
            None => (path.to_vec(), false),
        },
    }
}
