//! Conversations through the chat template, and which of their tokens are an assistant's.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Branch, Encoder, Part, Sketch, left_out, reading,
    renderer::Renderer,
    turns::{Split, Turn, Whole},
};
use crate::data::{
    notes::Note,
    records::{Record, Text, excerpt, role},
    template::Variables,
    tokenize::common_prefix,
};

/// Tokens at the end of a conversation among which its EOS is.
const LAST: usize = 8;

/// A row's conversations.
struct Conversations<'a> {
    encoder: &'a Encoder,
    renderer: Renderer<'a>,
}

/// A response's conversation, from its first message on.
struct Path {
    name: String,
    parent: Option<usize>,
    messages: Vec<Value>,
    /// Messages that are an assistant's and not to be learnt.
    muted: Vec<usize>,
}

/// What all conversations of a row continue.
struct Prompt {
    messages: Vec<Value>,
    text: String,
    ids: Vec<u32>,
}

impl Encoder {
    pub(super) fn chat(&self, record: &Record, parts: &[Part]) -> Result<Sketch> {
        let templates = self.templates.as_ref().context(
            "the row is a conversation and the model folder has no chat template: put a chat_template.jinja into it or \
             name one by data.template",
        )?;
        let kwargs = [&self.options.template_kwargs, &record.template_kwargs];
        let variables = Variables { tools: &record.tools, kwargs };
        let row = Conversations { encoder: self, renderer: Renderer::new(templates, variables) };
        let mut notes = Vec::new();
        let (prompt, mut paths) = row.paths(record, parts, &mut notes)?;
        reading::settle(&row.renderer, &mut paths.iter_mut().map(|path| &mut path.messages).collect::<Vec<_>>())?;
        let prompt = row.prompt(paths[0].messages[..prompt].to_vec())?;
        let (branches, shared) = row.branches(&prompt, &paths, &mut notes)?;
        self.note_ends(&branches, &mut notes);
        let whole = row.renderer.render(&paths[0].messages, false)?;
        left_out::from_prompt(&row.renderer, record, &prompt.messages, &whole, &mut notes);
        Ok(Sketch { prompt: Some(shared.unwrap_or(prompt.ids)), branches, notes })
    }
}

impl Encoder {
    /// A model stops at an EOS of its folder, and learns to write one only if its template does.
    fn note_ends(&self, branches: &[Branch], notes: &mut Vec<Note>) {
        let is_leaf = |i: usize| !branches.iter().any(|branch| branch.parent == Some(i));
        let ends = |branch: &Branch| branch.ids.iter().rev().take(LAST).any(|&id| self.tokenizer.is_end(id));
        if branches.iter().enumerate().any(|(i, branch)| is_leaf(i) && !ends(branch)) {
            let eos = self.tokenizer.piece(self.tokenizer.eos());
            let what = format!("ends a turn without an EOS token of the model folder, such as {}", excerpt(&eos));
            notes.push(Note::Template(what));
        }
    }
}

impl Conversations<'_> {
    /// Messages of the prompt, and every response's conversation with the prompt in front.
    fn paths(&self, record: &Record, parts: &[Part], notes: &mut Vec<Note>) -> Result<(usize, Vec<Path>)> {
        let mut paths: Vec<Vec<Value>> = Vec::new();
        for Part { parent, text, .. } in parts {
            let mut path = parent.map(|parent| paths[parent].clone()).unwrap_or_default();
            for message in messages(text) {
                extend(&mut path, message, parent.is_some());
            }
            paths.push(path);
        }
        let own = record.prompt.as_ref().map(messages).unwrap_or_default();
        let shared = if own.is_empty() { shared(parts, &paths) } else { 0 };
        let prompt = if own.is_empty() { paths[0][..shared].to_vec() } else { own.to_vec() };
        ensure!(
            !prompt.is_empty(),
            "the conversation begins with the assistant: put a message of the user in front of it"
        );
        let mut found = Vec::new();
        for (Part { name, parent, .. }, path) in parts.iter().zip(paths) {
            let mut messages = [&prompt[..], &path[shared..]].concat();
            let muted = reading::tidy(self.renderer.templates, &mut messages, prompt.len(), notes)
                .with_context(|| format!("`{name}`"))?;
            found.push(Path { name: name.clone(), parent: *parent, messages, muted });
        }
        Ok((prompt.len(), found))
    }

    fn prompt(&self, messages: Vec<Value>) -> Result<Prompt> {
        let text = self.renderer.render(&messages, true)?;
        self.encoder.check_prompt(&text)?;
        let ids = self.encoder.tokenizer.encode_rendered(&text)?;
        Ok(Prompt { messages, text, ids })
    }

    /// The responses in tokens; and what takes the place of the prompt's own ids, where a conversation does not begin as
    /// the prompt does.
    fn branches(
        &self,
        prompt: &Prompt,
        paths: &[Path],
        notes: &mut Vec<Note>,
    ) -> Result<(Vec<Branch>, Option<Vec<u32>>)> {
        let simple = paths.iter().map(|path| self.simple(prompt, path, notes));
        if let Some(branches) = simple.collect::<Result<Option<Vec<Branch>>>>()? {
            return Ok((branches, None));
        }
        let named = |path: &Path| format!("`{}`", path.name);
        let wholes =
            paths.iter().map(|path| Whole::new(&self.renderer, &path.messages, false).with_context(|| named(path)));
        let wholes = wholes.collect::<Result<Vec<_>>>()?;
        let before = Whole::new(&self.renderer, &prompt.messages, true)?;
        let splits: Vec<Split> = wholes.iter().map(|whole| whole.split(&before)).collect();
        // What a generation prompt opens belongs to the prompt in all conversations of the row, or in none.
        let common = splits.iter().map(|split| split.common).min().unwrap_or(0);
        let mut branches = Vec::new();
        for ((path, whole), split) in paths.iter().zip(&wholes).zip(&splits) {
            self.encoder.check_response(&path.name, whole.text(), Some(prompt.ids.len()))?;
            let opening = split.shortened(common);
            let mut turns = whole.turns(&self.renderer, prompt.messages.len(), opening).with_context(|| named(path))?;
            turns.retain(|turn| !path.muted.contains(&turn.message));
            let turns = left_out::from_turns(whole, turns, notes).with_context(|| named(path))?;
            branches.push(self.branch(path, whole, &turns).with_context(|| named(path))?);
        }
        let begins = wholes.iter().all(|whole| whole.text().starts_with(&prompt.text));
        Ok((branches.iter().map(|(branch, _)| branch.clone()).collect(), (!begins).then(|| own_prompt(&branches))))
    }

    /// A response of one message that continues the prompt's text: all behind the prompt is the assistant's. `None` if it
    /// is of another kind.
    fn simple(&self, prompt: &Prompt, path: &Path, notes: &mut Vec<Note>) -> Result<Option<Branch>> {
        let Path { name, parent, messages, muted } = path;
        if messages.len() != prompt.messages.len() + 1
            || role(&messages[prompt.messages.len()]) != "assistant"
            || !muted.is_empty()
        {
            return Ok(None);
        }
        let text = self.renderer.render(messages, false).with_context(|| format!("`{name}`"))?;
        let Some(tail) = text.strip_prefix(&prompt.text) else { return Ok(None) };
        self.encoder.check_response(name, &text, Some(prompt.ids.len()))?;
        left_out::from_tail(messages, &text, tail, notes).with_context(|| format!("`{name}`"))?;
        let ids = self.encoder.tokenizer.rendered_behind(&text, &prompt.text, &prompt.ids)?;
        Ok(Some(Branch { part: name.clone(), parent: *parent, ids, unscored: Vec::new() }))
    }

    /// The ids of a conversation, everything but the turns unscored; and the first token of its first turn.
    fn branch(&self, path: &Path, whole: &Whole, turns: &[Turn]) -> Result<(Branch, usize)> {
        let (ids, offsets) = self.encoder.tokenizer.encode_with_offsets(whole.text())?;
        let (mut unscored, mut at, mut first) = (Vec::new(), 0, None);
        for turn in turns {
            let tokens = turn.tokens(whole.text(), &offsets);
            let start = tokens.start.max(at);
            if start >= tokens.end {
                continue;
            }
            first.get_or_insert(start);
            if at < start {
                unscored.push(at..start);
            }
            at = tokens.end;
        }
        if at < ids.len() {
            unscored.push(at..ids.len());
        }
        let first = first
            .context("there is no message with role `assistant` to learn from, or its template shows none: give one")?;
        let Path { name, parent, .. } = path;
        Ok((Branch { part: name.clone(), parent: *parent, ids, unscored }, first))
    }
}

/// What the conversations themselves have in common before their first turn.
fn own_prompt(branches: &[(Branch, usize)]) -> Vec<u32> {
    let mut tops = branches.iter().filter(|(branch, _)| branch.parent.is_none());
    let Some((first, start)) = tops.next() else { return Vec::new() };
    let common = tops.map(|(branch, start)| common_prefix(&first.ids, &branch.ids).min(*start));
    first.ids[..common.fold(*start, usize::min)].to_vec()
}

/// Without a prompt: messages that all responses begin with, and at least one left to each; a conversation alone
/// splits at its first assistant.
fn shared(parts: &[Part], paths: &[Vec<Value>]) -> usize {
    let tops: Vec<_> =
        parts.iter().zip(paths).filter(|(part, _)| part.parent.is_none()).map(|(_, path)| path).collect();
    let Some((first, others)) = tops.split_first() else { return 0 };
    if others.is_empty() {
        return first.iter().position(is_assistant).unwrap_or(first.len().saturating_sub(1));
    }
    let common = |other: &&Vec<Value>| {
        let same = first.iter().zip(other.iter()).take_while(|(a, b)| a == b).count();
        same.min(first.len().saturating_sub(1)).min(other.len().saturating_sub(1))
    };
    others.iter().map(common).min().unwrap_or(0)
}

/// Adds a message; a step of an assistant goes on with the message of the step before it.
fn extend(path: &mut Vec<Value>, message: &Value, step: bool) {
    if let Some(last) = path.last_mut().filter(|last| step && is_assistant(last) && is_assistant(message))
        && let (Some(before), Some(more)) = (last["content"].as_str(), message["content"].as_str())
    {
        last["content"] = format!("{before}{more}").into();
    } else {
        path.push(message.clone());
    }
}

fn messages(text: &Text) -> &[Value] {
    if let Text::Chat(messages) = text { messages } else { &[] }
}

fn is_assistant(message: &Value) -> bool {
    role(message) == "assistant"
}
