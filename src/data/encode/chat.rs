//! Conversations through the chat template, and which of their tokens are an assistant's.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Branch, Encoder, Part, Sketch};
use crate::data::{
    records::{Record, Text, excerpt},
    template::{Templates, Variables},
    tokenize::common_prefix,
};

/// A template with what the row gives it.
struct Renderer<'a> {
    encoder: &'a Encoder,
    templates: &'a Templates,
    variables: Variables<'a>,
}

impl Encoder {
    pub(super) fn chat(&self, record: &Record, parts: &[Part]) -> Result<Sketch> {
        let templates = self.templates.as_ref().context(
            "the row is a conversation and the model folder has no chat template: put a chat_template.jinja into it or \
             name one by data.template",
        )?;
        let kwargs = [&self.options.template_kwargs, &record.template_kwargs];
        let renderer = Renderer { encoder: self, templates, variables: Variables { tools: &record.tools, kwargs } };
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
        let (text, ids) = renderer.encode(&prompt, true)?;
        let mut branches = Vec::new();
        for (Part { name, parent, .. }, path) in parts.iter().zip(paths) {
            let whole = [&prompt[..], &path[shared..]].concat();
            let branch = renderer.branch(&whole, prompt.len(), (&text, &ids));
            let (ids, unscored) = branch.with_context(|| format!("`{name}`"))?;
            branches.push(Branch { part: name.clone(), parent: *parent, ids, unscored });
        }
        Ok(Sketch { prompt: Some(ids), branches })
    }
}

impl Renderer<'_> {
    fn encode(&self, messages: &[Value], generation: bool) -> Result<(String, Vec<u32>)> {
        let text = self.templates.render(messages, &self.variables, generation)?;
        let ids = self.encoder.tokenizer.encode_rendered(&text)?;
        Ok((text, ids))
    }

    /// Ids of a conversation and which of them, behind its first `prompt` messages, are not an assistant's.
    fn branch(
        &self,
        messages: &[Value],
        prompt: usize,
        (prompt_text, prompt_ids): (&str, &[u32]),
    ) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let assistants = messages[prompt..].iter().filter(|message| is_assistant(message)).count();
        ensure!(assistants > 0, "there is no message with role `assistant` to learn from: give one");
        let (text, ids) = self.encode(messages, false)?;
        if messages.len() == prompt + 1 {
            if let Some(tail) = text.strip_prefix(prompt_text) {
                check_inside(&messages[prompt], &text, tail)?;
            } else {
                let start = common_prefix(prompt_ids, &ids);
                self.check_tokens(&messages[prompt], &text, &(start..ids.len()))?;
            }
            return Ok((ids, Vec::new()));
        }
        let mut unscored = Vec::new();
        let mut at = common_prefix(prompt_ids, &ids);
        for (i, message) in messages.iter().enumerate().skip(prompt).filter(|(_, message)| is_assistant(message)) {
            let turn = self.turn(messages, i, &text, &ids)?;
            let turn = turn.start.max(at)..turn.end;
            self.check_tokens(message, &text, &turn)?;
            if at < turn.start {
                unscored.push(at..turn.start);
            }
            at = turn.end;
        }
        if at < ids.len() && messages.last().is_some_and(|message| !is_assistant(message)) {
            unscored.push(at..ids.len());
        }
        Ok((ids, unscored))
    }

    /// The tokens of message `i`, an assistant's, within the whole conversation.
    fn turn(&self, messages: &[Value], i: usize, text: &str, ids: &[u32]) -> Result<Range<usize>> {
        let start = common_prefix(&self.encode(&messages[..i], true)?.1, ids);
        if i + 1 == messages.len() {
            return Ok(start..ids.len());
        }
        let end = common_prefix(&self.encode(&messages[..=i], false)?.1, ids);
        let turn = start..end.max(start);
        if self.check_tokens(&messages[i], text, &turn).is_ok() && turn.start < turn.end {
            return Ok(turn);
        }
        // The template writes this message otherwise once more follow it (Qwen3 leaves its reasoning out): it ends with
        // the first end of turn behind its text.
        let offsets = self.encoder.tokenizer.offsets(text)?;
        let from = offsets.get(start).map_or(text.len(), |offset| offset.0);
        let content = messages[i]["content"].as_str().unwrap_or_default();
        let content = content.rsplit("</think>").next().unwrap_or_default().trim();
        let behind = text.get(from..).and_then(|rest| rest.find(content)).map(|at| from + at + content.len());
        let ends = |&k: &usize| offsets[k].0 >= behind.unwrap_or(0) && self.encoder.tokenizer.is_end(ids[k]);
        match (behind, (start..ids.len()).find(ends)) {
            (Some(_), Some(end)) => Ok(start..end + 1),
            _ => bail!(
                "the chat template leaves out or rewrites the assistant's message {} ({}): remove the messages behind it",
                i + 1,
                excerpt(content)
            ),
        }
    }

    fn check_tokens(&self, message: &Value, text: &str, tokens: &Range<usize>) -> Result<()> {
        let offsets = self.encoder.tokenizer.offsets(text)?;
        let at = |token: usize| offsets.get(token).map_or(text.len(), |offset| offset.0);
        check_inside(message, text, text.get(at(tokens.start)..at(tokens.end)).unwrap_or_default())
    }
}

/// Refuses a border that leaves some of the assistant's text to the prompt. A template may rewrite a message, so text
/// that is nowhere to be found is its business.
fn check_inside(message: &Value, text: &str, scored: &str) -> Result<()> {
    let content = message["content"].as_str().unwrap_or_default().trim();
    ensure!(!scored.is_empty(), "the chat template writes nothing for the assistant's message: check the template");
    ensure!(
        scored.contains(content) || !text.contains(content),
        "the chat template renders prompt and conversation so that some of the assistant's text ({}) counts as \
         prompt: name another template by data.template",
        excerpt(content)
    );
    Ok(())
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
    message["role"] == "assistant"
}
