//! What was said and the chat template does not show: named, counted, or refused where nothing of a response is left.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    marks::{self, Kind, Piece},
    renderer::Renderer,
    turns::{Turn, Whole, shows},
};
use crate::data::{
    notes::Note,
    records::{Record, excerpt, role},
};

/// Looks for everything that the turns say, and gives back those of which anything is shown: an empty turn was not said.
///
/// # Errors
/// Nothing of all of them is shown, or some of it only outside of their turns.
pub(super) fn from_turns(whole: &Whole, turns: Vec<Turn>, notes: &mut Vec<Note>) -> Result<Vec<Turn>> {
    let (mut seen, mut missing, mut shown) = (0, Vec::new(), Vec::new());
    for turn in turns {
        let (before, left) = (seen, missing.len());
        let own = |piece: &usize| whole.pieces[*piece].message == turn.message;
        for piece in (0..whole.pieces.len()).filter(own) {
            if whole.shows(piece, &turn.span) {
                seen += 1;
            } else {
                check_outside(whole, piece)?;
                missing.push(&whole.pieces[piece]);
            }
        }
        check_tools(&whole.messages[turn.message], &whole.text()[turn.span.clone()], notes);
        if seen > before || missing.len() == left {
            shown.push(turn);
        } else {
            notes.push(Note::Template("shows nothing of a turn of the assistant, which is read and not learnt".into()));
        }
    }
    judge(seen, &missing, notes)?;
    Ok(shown)
}

/// The same for a response of one message, all of whose text is in `tail`, the end of `text`.
///
/// # Errors
/// Nothing of it is shown, or some of it only in the prompt.
pub(super) fn from_tail(messages: &[Value], text: &str, tail: &str, notes: &mut Vec<Note>) -> Result<()> {
    let Some((message, _)) = messages.split_last() else { return Ok(()) };
    let pieces = marks::pieces(std::slice::from_ref(message));
    let (shown, missing): (Vec<_>, Vec<_>) = pieces.iter().partition(|piece| shows(tail, piece));
    for piece in &missing {
        let elsewhere = piece.kind == Kind::Words && text.contains(&piece.text);
        ensure!(!elsewhere, "{}", counts_as_prompt(piece));
    }
    check_tools(message, tail, notes);
    judge(shown.len(), &missing, notes)
}

/// What the template makes of the prompt and the tools of the row.
pub(super) fn from_prompt(renderer: &Renderer, record: &Record, prompt: &[Value], text: &str, notes: &mut Vec<Note>) {
    let pieces = marks::pieces(prompt);
    for piece in pieces.iter().filter(|piece| piece.kind != Kind::Thought && !shows(text, piece)) {
        let speaker = role(&prompt[piece.message]).to_owned();
        notes.push(Note::Template(format!("leaves out text of a message from `{speaker}`")));
    }
    let name = |tool: &Value| Some(tool.get("function").unwrap_or(tool).get("name")?.as_str()?.to_owned());
    let names: Vec<String> = record.tools.iter().filter_map(name).collect();
    if !record.tools.is_empty() && !names.iter().any(|name| text.contains(name.as_str())) {
        notes.push(Note::Template("leaves out the tools".into()));
    }
    for key in record.template_kwargs.keys().filter(|key| !renderer.templates.mentions(key)) {
        notes.push(Note::Unread(format!("`chat_template_kwargs.{key}`")));
    }
}

/// A piece whose only place is outside of its turn counts as prompt.
fn check_outside(whole: &Whole, piece: usize) -> Result<()> {
    let elsewhere = whole.marked.places.iter().any(|(own, _)| *own == piece);
    ensure!(!elsewhere || whole.pieces[piece].kind != Kind::Words, "{}", counts_as_prompt(&whole.pieces[piece]));
    Ok(())
}

fn counts_as_prompt(piece: &Piece) -> String {
    format!(
        "the chat template renders prompt and conversation so that some of the assistant's text ({}) counts as prompt: \
         name another template by data.template",
        excerpt(&piece.text)
    )
}

/// Arguments of calls that come as text and stand in the rendering as a text within JSON.
fn check_tools(message: &Value, text: &str, notes: &mut Vec<Note>) {
    let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    for call in calls {
        let Some(arguments) = call.get("function").unwrap_or(call).get("arguments") else { continue };
        match arguments.as_str() {
            Some(own) if !own.trim().is_empty() && !text.contains(own.trim()) => {
                notes.push(Note::Template("leaves out or rewrites the arguments of a tool call".into()));
            }
            _ => {}
        }
    }
}

fn judge(seen: usize, missing: &[&Piece], notes: &mut Vec<Note>) -> Result<()> {
    for (kind, what) in [
        (Kind::Words, "leaves out or rewrites text of the assistant"),
        (Kind::Thought, "leaves out the assistant's reasoning"),
        (Kind::Call, "leaves out or rewrites tool calls of the assistant"),
    ] {
        if missing.iter().any(|piece| piece.kind == kind) {
            notes.push(Note::Template(what.into()));
        }
    }
    let Some(first) = missing.first().filter(|_| seen == 0) else { return Ok(()) };
    let what = if first.kind == Kind::Call { "tool call" } else { "message" };
    anyhow::bail!(
        "the chat template leaves out the assistant's {what} ({}), nothing of the response is left: name another \
         template by data.template or remove the row",
        excerpt(&first.text)
    )
}
