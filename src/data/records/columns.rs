//! Our names of a row's fields, and what a file calls them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Our names of a row's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    /// `prompt`.
    Prompt,
    /// `chosen`.
    Chosen,
    /// `rejected`.
    Rejected,
    /// `responses`.
    Responses,
    /// `scores`.
    Scores,
    /// `ranks`.
    Ranks,
    /// `labels`.
    Labels,
    /// `completion`.
    Completion,
    /// `label`.
    Label,
    /// `text`.
    Text,
    /// `messages`.
    Messages,
    /// `system`.
    System,
    /// `nodes`.
    Nodes,
    /// `tools`.
    Tools,
    /// `chat_template_kwargs`.
    ChatTemplateKwargs,
    /// `score`.
    Score,
    /// `score_chosen`.
    ScoreChosen,
    /// `score_rejected`.
    ScoreRejected,
    /// `preference`.
    Preference,
    /// `win_rate_chosen`.
    WinRateChosen,
    /// `win_rate_rejected`.
    WinRateRejected,
    /// `visits_chosen`.
    VisitsChosen,
    /// `visits_rejected`.
    VisitsRejected,
    /// `margin`.
    Margin,
    /// `uncertainty`.
    Uncertainty,
    /// `judge_logit`.
    JudgeLogit,
    /// `group`.
    Group,
    /// `rationale`.
    Rationale,
    /// `rationale_prompt`.
    RationalePrompt,
    /// `rejected_prompt`.
    RejectedPrompt,
}

impl Column {
    /// As rows and `[data.columns]` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Chosen => "chosen",
            Self::Rejected => "rejected",
            Self::Responses => "responses",
            Self::Scores => "scores",
            Self::Ranks => "ranks",
            Self::Labels => "labels",
            Self::Completion => "completion",
            Self::Label => "label",
            Self::Text => "text",
            Self::Messages => "messages",
            Self::System => "system",
            Self::Nodes => "nodes",
            Self::Tools => "tools",
            Self::ChatTemplateKwargs => "chat_template_kwargs",
            Self::Score => "score",
            Self::ScoreChosen => "score_chosen",
            Self::ScoreRejected => "score_rejected",
            Self::Preference => "preference",
            Self::WinRateChosen => "win_rate_chosen",
            Self::WinRateRejected => "win_rate_rejected",
            Self::VisitsChosen => "visits_chosen",
            Self::VisitsRejected => "visits_rejected",
            Self::Margin => "margin",
            Self::Uncertainty => "uncertainty",
            Self::JudgeLogit => "judge_logit",
            Self::Group => "group",
            Self::Rationale => "rationale",
            Self::RationalePrompt => "rationale_prompt",
            Self::RejectedPrompt => "rejected_prompt",
        }
    }
}

/// What the file calls a field, where it is not our name.
pub type Columns = BTreeMap<Column, String>;
