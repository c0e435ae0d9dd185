//! From a record to its token tree: prompt, responses, their borders, the loss mask and the longest parts allowed.
//!
//! A border lies where the token ids of the prompt and of prompt and response part, as in TRL: what is trained on is
//! exactly what the whole text gives. A plain response ends with one EOS; a conversation ends as its template ends it.

mod chat;
mod documents;
mod early;
mod fit;
mod left_out;
mod marks;
mod reading;
mod renderer;
mod turns;

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{
    Limits,
    long::{LongPrompt, LongResponse, LongText},
    notes::Note,
    records::{Body, Record, Text, excerpt},
    template::Templates,
    tokenize::{Tokenizer, common_prefix},
};
use early::TooLong;
use fit::Fit;
pub use fit::too_long_for_the_model;

use crate::{
    cache::{Key, KeyBuilder},
    forest::{Role, Segment, Tree, Value as Kind},
};

/// What the configuration says about encoding.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// Longest parts of a row.
    pub limits: Limits,
    /// What is done with a longer prompt.
    pub long_prompt: LongPrompt,
    /// What is done with a longer response.
    pub long_response: LongResponse,
    /// What is done with a longer document.
    pub long_text: LongText,
    /// Variables for the chat template; those of a row win.
    pub template_kwargs: Map<String, Value>,
    /// Tokens that the model reads: the longest path of a tree.
    pub positions: usize,
}

impl EncodeOptions {
    /// Limits alone: what is too long is an error.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            long_prompt: LongPrompt::Error,
            long_response: LongResponse::Error,
            long_text: LongText::Error,
            template_kwargs: Map::new(),
            positions: usize::MAX,
        }
    }
}

/// Turns records into trees, always the same record into the same tree.
pub struct Encoder {
    tokenizer: Tokenizer,
    templates: Option<Templates>,
    options: EncodeOptions,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoded {
    /// The row's tree.
    Tree {
        /// Its tokens by segment.
        tree: Tree,
        /// The prompt was longer than allowed and cut.
        prompt_cut: bool,
        /// Responses that were longer than allowed and cut.
        responses_cut: usize,
        /// What of the row has no effect, or another than it says.
        notes: Vec<Note>,
    },
    /// A document that was cut into blocks, none of whose tokens is lost.
    Blocks {
        /// One a block.
        trees: Vec<Tree>,
        /// As of a tree.
        notes: Vec<Note>,
    },
    /// Left out because a part is too long and the policy says so; the text says which.
    Dropped(String),
}

/// A response or step, as token ids from the start of the conversation to its own end.
#[derive(Clone)]
struct Branch {
    part: String,
    parent: Option<usize>,
    ids: Vec<u32>,
    /// Tokens that are read, not predicted; positions in `ids`.
    unscored: Vec<Range<usize>>,
}

/// All texts of a record in token ids, not yet cut at their borders. Without a prompt, the only branch that continues
/// none is a document.
struct Sketch {
    prompt: Option<Vec<u32>>,
    branches: Vec<Branch>,
    notes: Vec<Note>,
}

impl Encoder {
    /// An encoder of these parts.
    pub fn new(tokenizer: Tokenizer, templates: Option<Templates>, options: EncodeOptions) -> Self {
        Self { tokenizer, templates, options }
    }

    /// For a model that reads so many tokens.
    pub fn within(mut self, positions: usize) -> Self {
        self.options.positions = positions;
        self
    }

    /// Longest parts of a row.
    pub fn limits(&self) -> Limits {
        self.options.limits
    }

    /// The model folder's tokenizer, alone.
    pub fn into_tokenizer(self) -> Tokenizer {
        self.tokenizer
    }

    /// The model folder's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Hashes of the tokenizer and of the chat template, if there is one, in hexadecimal.
    pub fn hashes(&self) -> (String, Option<String>) {
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let template = self.templates.as_ref().map(|templates| hash(templates.fingerprint().as_bytes()));
        (hash(self.tokenizer.fingerprint()), template)
    }

    /// The hash of everything but the record that determines a tree. How large a micro-batch may be is no part of it,
    /// unless blocks of documents follow it.
    pub fn key(&self) -> Key {
        let mut options = self.options.clone();
        options.limits.tree = if options.long_text == LongText::Split { self.block() } else { 0 };
        let mut key = KeyBuilder::new("encoder 2");
        key.part("tokenizer", self.tokenizer.fingerprint());
        key.part("template", self.templates.as_ref().map(Templates::fingerprint).unwrap_or_default().as_bytes());
        key.part("options", format!("{options:?}").as_bytes());
        key.finish()
    }

    /// The tree of a record; `at` names the row.
    ///
    /// # Errors
    /// What is wrong with the row, without its place.
    pub fn encode(&self, at: &str, record: &Record) -> Result<Encoded> {
        match self.encode_whole(at, record) {
            Err(why) if why.downcast_ref::<TooLong>().is_some_and(|long| long.dropped) => {
                Ok(Encoded::Dropped(format!("{why:#}")))
            }
            encoded => encoded,
        }
    }

    fn encode_whole(&self, at: &str, record: &Record) -> Result<Encoded> {
        if let (Body::Pair { chosen, rejected }, Some(other)) = (&record.body, &record.extras.rejected_prompt) {
            return self.two_documents(at, record, [chosen, rejected], other);
        }
        let parts = parts(&record.body);
        ensure!(!parts.is_empty(), "the row has no response: give one or remove the row");
        for (i, Part { name, parent, .. }) in parts.iter().enumerate() {
            ensure!(parent.is_none_or(|parent| parent < i), "`{name}` comes before its parent: put parents first");
        }
        let texts = record.prompt.iter().chain(parts.iter().map(|part| part.text));
        let chats = texts.clone().filter(|text| matches!(text, Text::Chat(_))).count();
        let mut sketch = match chats {
            0 => self.plain(record, &parts)?,
            _ if chats == texts.count() => self.chat(record, &parts)?,
            _ => bail!("the row mixes plain text and messages: give all of its texts in one form"),
        };
        sketch.find_prompt()?;
        self.check(&sketch)?;
        self.tree(at, record, sketch)
    }

    fn plain(&self, record: &Record, parts: &[Part]) -> Result<Sketch> {
        let text = |text: &Text| if let Text::Plain(text) = text { text.clone() } else { String::new() };
        let prompt = record.prompt.as_ref().map(text);
        prompt.as_deref().map_or(Ok(()), |prompt| self.check_prompt(prompt))?;
        let prompt_ids = prompt.as_ref().map(|prompt| self.tokenizer.encode(prompt)).transpose()?;
        let splits = self.splits(record);
        let mut paths: Vec<String> = Vec::new();
        let mut branches: Vec<Branch> = Vec::new();
        for Part { name, parent, text: own } in parts {
            let before = parent.map_or(prompt.as_deref().unwrap_or_default(), |parent| &paths[parent]);
            let path = format!("{before}{}", text(own));
            if !splits {
                let shared = if record.is_document() { Some(0) } else { prompt_ids.as_ref().map(Vec::len) };
                self.check_response(name, &path, shared)?;
            }
            let above = parent.map_or(prompt_ids.as_deref(), |parent| Some(&branches[parent].ids[..]));
            let ids = self.tokenizer.encode_behind(&path, before, above.unwrap_or_default())?;
            let gained = ids.len() > above.map_or(0, |above| common_prefix(above, &ids));
            ensure!(gained, "`{name}` gives no tokens: give the response or remove the row");
            paths.push(path);
            branches.push(Branch { part: name.clone(), parent: *parent, ids, unscored: Vec::new() });
        }
        for i in 0..branches.len() {
            if !branches.iter().any(|branch| branch.parent == Some(i)) {
                self.tokenizer.end(&mut branches[i].ids);
            }
        }
        Ok(Sketch { prompt: prompt_ids, branches, notes: Vec::new() })
    }

    /// Refuses doubled BOS and EOS and ids that the model does not have.
    fn check(&self, sketch: &Sketch) -> Result<()> {
        for Branch { part, ids, .. } in &sketch.branches {
            if let Some(end) = self.tokenizer.doubled_end(ids) {
                bail!("`{part}` ends with EOS (token {end}) twice: remove it from the text, it is added");
            }
        }
        let named = sketch.branches.iter().map(|branch| (branch.part.as_str(), &branch.ids));
        for (part, ids) in sketch.prompt.iter().map(|ids| ("prompt", ids)).chain(named) {
            if let (Some(bos), [first, second, ..]) = (self.tokenizer.bos(), &ids[..]) {
                let doubled = *first == bos && *second == bos;
                ensure!(!doubled, "`{part}` begins with BOS (token {bos}) twice: remove one from the text");
            }
            self.tokenizer.check_ids(part, ids)?;
        }
        Ok(())
    }

    /// Whether a record that is too long is cut into blocks.
    fn splits(&self, record: &Record) -> bool {
        self.options.long_text == LongText::Split && record.is_document()
    }

    /// Tokens of a block of a document.
    fn block(&self) -> usize {
        self.options.limits.response.min(self.options.limits.tree).min(self.options.positions)
    }

    fn tree(&self, at: &str, record: &Record, sketch: Sketch) -> Result<Encoded> {
        let EncodeOptions { limits, long_prompt, long_response, .. } = &self.options;
        let (root_end, mut ends) = sketch.borders();
        if let (0, Some(_)) = (root_end, &sketch.prompt) {
            let prompt = record.prompt.as_ref().map(|text| if let Text::Plain(text) = text { text } else { "" });
            bail!(
                "`prompt` ({}) gives no token of its own: give a prompt that is not empty and does not merge with the response",
                excerpt(prompt.unwrap_or_default())
            );
        }
        let mut prompt = sketch.prompt.clone().unwrap_or_default();
        prompt.truncate(root_end);
        let too_long = |part: &str, tokens: usize, key: &str, limit: usize| {
            format!("{part} has {tokens} tokens, `{key}` = {limit}: shorten it or raise {key}")
        };
        let longest = ends.iter().map(|end| end - root_end).max().unwrap_or(0);
        let limits = match self.options.fit(prompt.len(), longest) {
            _ if self.splits(record) => *limits,
            Fit::Within { prompt, response } => Limits { prompt, response, ..*limits },
            Fit::Drop => {
                return Ok(Encoded::Dropped(self.options.too_long_for_the_model(prompt.len() + longest)));
            }
            Fit::Refuse => bail!(self.options.too_long_for_the_model(prompt.len() + longest)),
        };
        let prompt_cut = prompt.len() > limits.prompt;
        if prompt_cut {
            let why = too_long("`prompt`", prompt.len(), "data.max_prompt_tokens", limits.prompt);
            match long_prompt {
                LongPrompt::Error => bail!(why),
                LongPrompt::Drop => return Ok(Encoded::Dropped(why)),
                LongPrompt::KeepStart => prompt.truncate(limits.prompt),
                LongPrompt::KeepEnd => self.keep_end(&mut prompt, limits.prompt),
            }
        }
        let mut responses_cut = 0;
        for (branch, end) in sketch.branches.iter().zip(&mut ends) {
            let tokens = *end - root_end;
            if tokens > limits.response && !self.splits(record) {
                let why = too_long(&format!("`{}`", branch.part), tokens, "data.max_response_tokens", limits.response);
                match long_response {
                    LongResponse::Error => bail!(why),
                    LongResponse::Drop => return Ok(Encoded::Dropped(why)),
                    LongResponse::KeepStart => *end = root_end + limits.response,
                }
                responses_cut += 1;
            }
        }
        let mut tree = Tree { name: at.to_owned(), ..Tree::default() };
        if sketch.prompt.is_some() {
            tree.segments.push(Segment { tokens: prompt, ..Segment::default() });
        }
        let order = sketch.grow(&mut tree, root_end, &ends)?;
        fill(&mut tree, &record.body, &order)?;
        fill_values(&mut tree, record, &order);
        if let Some([prompt, rationale]) = &record.extras.rationale {
            self.add_rationale(&mut tree, prompt, rationale)?;
        }
        let notes = [&record.notes[..], &sketch.notes].concat();
        if self.splits(record) && tree.tokens() > self.block() {
            return Ok(Encoded::Blocks { trees: documents::split(tree, self.block())?, notes });
        }
        self.check_path(&tree)?;
        Ok(Encoded::Tree { tree, prompt_cut, responses_cut, notes })
    }

    /// A pair whose sides have prompts of their own: two documents, all of their tokens learnt.
    fn two_documents(&self, at: &str, record: &Record, sides: [&Text; 2], other: &str) -> Result<Encoded> {
        let limits = self.options.limits;
        let mut tree = Tree { name: at.to_owned(), pairs: vec![[0, 1]], ..Tree::default() };
        let Some(Text::Plain(own)) = &record.prompt else {
            bail!("`rejected_prompt` needs a plain `prompt` beside it")
        };
        for (prompt, response) in [own.as_str(), other].into_iter().zip(sides) {
            let Text::Plain(response) = response else { bail!("`rejected_prompt` needs plain responses beside it") };
            let (text, most) = (format!("{prompt}{response}"), limits.prompt + limits.response);
            let least = self.tokenizer.at_least(&text);
            ensure!(
                least <= most,
                "prompt and response have at least {least} tokens, the limits allow {most}: shorten them"
            );
            let mut tokens = self.tokenizer.encode(&text)?;
            self.tokenizer.end(&mut tokens);
            let found = tokens.len();
            ensure!(found <= most, "prompt and response have {found} tokens, the limits allow {most}: shorten them");
            tree.segments.push(Segment { tokens, scored: true, ..Segment::default() });
        }
        ensure!(
            tree.segments[0].tokens != tree.segments[1].tokens,
            "both sides have the same token ids: remove the row"
        );
        fill_values(&mut tree, record, &[0, 1]);
        self.check_path(&tree)?;
        Ok(Encoded::Tree { tree, prompt_cut: false, responses_cut: 0, notes: record.notes.clone() })
    }

    /// Refuses what is longer than the model reads and has no policy.
    fn check_path(&self, tree: &Tree) -> Result<()> {
        let longest = tree.longest_path();
        ensure!(longest <= self.options.positions, self.options.too_long_for_the_model(longest));
        Ok(())
    }

    /// A third sequence: why the chosen response is the better one, behind a prompt of its own.
    fn add_rationale(&self, tree: &mut Tree, prompt: &str, rationale: &str) -> Result<()> {
        let start = self.tokenizer.encode(prompt)?;
        let mut whole = self.tokenizer.encode(&format!("{prompt}{rationale}"))?;
        self.tokenizer.end(&mut whole);
        let border = common_prefix(&start, &whole);
        ensure!(0 < border && border < whole.len(), "`rationale_prompt` or `rationale` gives no token of its own");
        let limits = self.options.limits;
        let found = whole.len();
        ensure!(
            found <= limits.prompt + limits.response,
            "`rationale_prompt` and `rationale` have {found} tokens, the limits allow {}: shorten them",
            limits.prompt + limits.response
        );
        let root = tree.segments.len();
        tree.segments.push(Segment { tokens: whole[..border].to_vec(), ..Segment::default() });
        let tokens = whole[border..].to_vec();
        let role = Role::Rationale;
        tree.segments.push(Segment { parent: Some(root), tokens, scored: true, role, ..Segment::default() });
        Ok(())
    }

    /// Cuts the start of a prompt behind its BOS.
    fn keep_end(&self, prompt: &mut Vec<u32>, limit: usize) {
        let bos = usize::from(limit > 1 && prompt.first().copied() == self.tokenizer.bos());
        let excess = prompt.len() - limit;
        prompt.drain(bos..bos + excess);
    }
}

impl Sketch {
    /// Without a prompt of its own, what several responses have in common at their start is the prompt.
    fn find_prompt(&mut self) -> Result<()> {
        let mut tops = self.branches.iter().filter(|branch| branch.parent.is_none()).map(|branch| &branch.ids);
        let first = tops.next().context("the row has no response that continues the prompt")?;
        let mut common = first.len();
        let mut alone = true;
        for ids in tops {
            alone = false;
            common = common.min(common_prefix(first, ids)).min(ids.len() - 1).min(first.len() - 1);
        }
        if self.prompt.is_none() && !alone {
            ensure!(common > 0, "the responses have no token in common at their start: give the row a `prompt`");
            self.prompt = Some(first[..common].to_vec());
        }
        Ok(())
    }

    /// Where prompt and branches end, counted from the start: where what continues them goes other ways.
    fn borders(&self) -> (usize, Vec<usize>) {
        let end = |above: Option<usize>, ids: &[u32]| {
            let below = self.branches.iter().filter(|branch| branch.parent == above);
            below.map(|branch| common_prefix(ids, &branch.ids)).min().unwrap_or(ids.len())
        };
        let root = self.prompt.as_ref().map_or(0, |prompt| end(None, prompt));
        (root, self.branches.iter().enumerate().map(|(i, branch)| end(Some(i), &branch.ids)).collect())
    }

    /// Adds the branches to the tree, depth first; gives back which branch each scored segment is.
    fn grow(&self, tree: &mut Tree, root_end: usize, ends: &[usize]) -> Result<Vec<usize>> {
        let root = self.prompt.is_some().then_some(0);
        let below = |above: Option<usize>| {
            let own = move |&i: &usize| self.branches[i].parent == above;
            (0..self.branches.len()).rev().filter(own)
        };
        let mut order = Vec::new();
        let mut open: Vec<(usize, Option<usize>)> = below(None).map(|i| (i, root)).collect();
        while let Some((i, parent)) = open.pop() {
            let Branch { part, parent: above, ids, unscored } = &self.branches[i];
            let (start, end) = (above.map_or(root_end, |above| ends[above]), ends[i]);
            ensure!(
                start < end,
                "`{part}` has no token of its own before the limit or before what follows it: raise \
                 data.max_response_tokens or join it to its neighbour"
            );
            let clip = |range: &Range<usize>| range.start.max(start) - start..range.end.clamp(start, end) - start;
            let unscored: Vec<_> = unscored.iter().map(clip).filter(|range| range.start < range.end).collect();
            let read: usize = unscored.iter().map(Range::len).sum();
            ensure!(read < end - start, "`{part}` holds no token of an assistant within the limit: give it one");
            open.extend(below(Some(i)).map(|child| (child, Some(tree.segments.len()))));
            let tokens = ids[start..end].to_vec();
            tree.segments.push(Segment { parent, tokens, scored: true, unscored, ..Segment::default() });
            order.push(i);
        }
        Ok(order)
    }
}

/// One text of a record's body.
struct Part<'a> {
    name: String,
    parent: Option<usize>,
    text: &'a Text,
}

fn parts(body: &Body) -> Vec<Part<'_>> {
    let part = |name: &str, text| Part { name: name.into(), parent: None, text };
    match body {
        Body::Pair { chosen, rejected } => vec![part("chosen", chosen), part("rejected", rejected)],
        Body::Unpaired { completion, .. } | Body::Completion { completion } => vec![part("completion", completion)],
        Body::List { responses, .. } => {
            responses.iter().enumerate().map(|(i, text)| part(&format!("responses[{i}]"), text)).collect()
        }
        Body::Tree { nodes } => {
            let node = |i: usize| Part { name: format!("nodes[{i}]"), parent: nodes[i].parent, text: &nodes[i].text };
            (0..nodes.len()).map(node).collect()
        }
    }
}

/// Numbers of a tree whose scored segments are these parts of the body.
fn fill_values(tree: &mut Tree, record: &Record, order: &[usize]) {
    for (kind, numbers) in &record.extras.values {
        let numbers: Vec<f64> = order.iter().filter_map(|&i| numbers.get(i).copied()).collect();
        match kind {
            Kind::Score => tree.scores = numbers,
            _ => tree.values.push((*kind, numbers)),
        }
    }
}

/// Pairs, scores and labels of a tree whose scored segments are these parts of the body.
fn fill(tree: &mut Tree, body: &Body, order: &[usize]) -> Result<()> {
    match body {
        Body::Pair { .. } => {
            let [.., chosen, rejected] = &tree.segments[..] else { bail!("a pair has two responses") };
            let differ = chosen.tokens != rejected.tokens;
            ensure!(differ, "`chosen` and `rejected` have the same token ids: remove the row");
            tree.pairs = vec![[0, 1]];
        }
        Body::List { scores, labels, .. } => (tree.scores, tree.labels) = (scores.clone(), labels.clone()),
        Body::Unpaired { label, .. } => tree.labels = vec![*label],
        Body::Completion { .. } => {}
        Body::Tree { nodes } => {
            tree.scores = order.iter().filter_map(|&i| nodes[i].score).collect();
            let known = tree.scores.len();
            ensure!(
                known == 0 || known == nodes.len(),
                "{known} of {} nodes have a score: give every node one, or none",
                nodes.len()
            );
        }
    }
    Ok(())
}
