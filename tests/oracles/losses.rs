//! Every loss as a plain number, straight from its formula in docs/losses.md: no slopes, no shared code, means written out.
//! What a formula takes as a constant comes from `fixed`, the same step at the point where slopes are wanted.

/// One sequence: per token the log-probabilities under policy and reference, KL(reference || policy), log of the sum of
/// squared probabilities, and the weights of log-ratio and divergence.
#[derive(Clone, Default)]
pub struct Sequence {
    pub lp: Vec<f64>,
    pub lq: Vec<f64>,
    pub kl: Vec<f64>,
    pub collision: Vec<f64>,
    pub mu: Vec<f64>,
    pub md: Vec<f64>,
    /// The numbers that came with it.
    pub values: [f64; 2],
}

impl Sequence {
    fn a(&self) -> f64 {
        self.lp.iter().sum()
    }
    fn n(&self) -> f64 {
        self.lp.len() as f64
    }
    fn rho(&self) -> f64 {
        self.lp.iter().zip(&self.lq).map(|(p, q)| p - q).sum()
    }
    fn kl(&self) -> f64 {
        self.kl.iter().sum()
    }
    fn masked(&self) -> f64 {
        (0..self.lp.len()).map(|t| self.mu[t] * (self.lp[t] - self.lq[t]) + self.md[t] * self.kl[t]).sum()
    }
    fn wpo(&self) -> f64 {
        (self.lp.iter().zip(&self.collision).map(|(lp, c)| lp - c).sum::<f64>() / self.n()).exp()
    }
}

fn sig(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn sp(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn ce(u: f64, p: f64) -> f64 {
    p * sp(-u) + (1.0 - p) * sp(u)
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = values.collect();
    all.iter().sum::<f64>() / all.len() as f64
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// A step: its groups, chosen or best first where that means something.
pub type Groups = Vec<Vec<Sequence>>;

/// The step's loss with these parameters; not a number for a loss that is not written down here.
pub fn step(name: &str, p: &dyn Fn(&str) -> f64, groups: &Groups, fixed: &Groups) -> f64 {
    let w = |g: &[Sequence]| g[0].clone();
    let l = |g: &[Sequence]| g[1].clone();
    let each = |f: &dyn Fn(&[Sequence], &[Sequence]) -> f64| mean(groups.iter().zip(fixed).map(|(g, f0)| f(g, f0)));
    let beta = || p("beta");
    let h = |g: &[Sequence]| w(g).rho() - l(g).rho();
    let u = |g: &[Sequence]| beta() * h(g);
    let e = || p("label_smoothing");
    let token_mean = |place: usize| {
        groups.iter().map(|g| -g[place].a()).sum::<f64>() / groups.iter().map(|g| g[place].n()).sum::<f64>()
    };
    match name {
        "dpo" | "cdpo" => each(&|g, _| ce(u(g), 1.0 - e())),
        "apo_accelerated" | "dove" | "ld_dpo" => {
            let alpha = if name == "ld_dpo" { p("ld_alpha") } else { 1.0 };
            let weighted = |s: &Sequence, other: &Sequence| -> f64 {
                let full = s.lp.len().min(other.lp.len());
                let weight = |t: usize| if t < full { 1.0 } else { alpha };
                (0..s.lp.len()).map(|t| weight(t) * (s.lp[t] - s.lq[t])).sum()
            };
            each(&|g, _| sp(-beta() * (weighted(&g[0], &g[1]) - weighted(&g[1], &g[0]))))
        }
        "rdpo" => each(&|g, _| ((1.0 - e()) * sp(-u(g)) - e() * sp(u(g))) / (1.0 - 2.0 * e())),
        "hinge" => each(&|g, _| (1.0 - u(g)).max(0.0)),
        "ipo_sum" => each(&|g, _| (h(g) - 0.5 / p("tau")).powi(2)),
        "exo_pair" => each(&|g, _| {
            let q = sig(u(g));
            q * (q.ln() - (1.0 - e()).ln()) + (1.0 - q) * ((1.0 - q).ln() - e().ln())
        }),
        "discopop" => each(&|g, _| {
            let m = sig(u(g) / p("discopop_tau"));
            sp(-u(g)) * (1.0 - m) + (-u(g)).exp() * m
        }),
        "soft_label" => each(&|g, _| ce(u(g), g[0].values[0])),
        "dno" => each(&|g, _| ce(u(g), sig(g[0].values[0] - g[1].values[0]))),
        "mcts_dpo" => each(&|g, _| {
            let [nw, nl] = [g[0].values[0], g[1].values[0]];
            ce(u(g), 1.0 - (1.0 - 1.0 / (1.0 + nl / nw.max(1.0))).min(0.5))
        }),
        "spa" => each(&|g, _| ce(u(g), if g[0].values[0] <= p("gap") { 1.0 - p("alpha") } else { 1.0 })),
        "upo" => each(&|g, _| ce(u(g), 1.0 - 1.0 / (1.0 + g[0].values[0]))),
        "wpo" => each(&|g, f| f[0].wpo() * f[1].wpo() * sp(-u(g))),
        "scir" => each(&|g, f| {
            let z = if sig(u(f)) + sig(f[0].values[0]) > 1.0 { 1.0 } else { 0.0 };
            (ce(u(g), z) + ce(g[0].values[0], z)) / 2.0
        }),
        "genarm" => each(&|g, _| sp(-beta() * (w(g).a() - l(g).a()))),
        "ln_dpo" => each(&|g, _| sp(-beta() * (w(g).rho() / w(g).n() - l(g).rho() / l(g).n()))),
        "ipo" => each(&|g, _| (w(g).rho() / w(g).n() - l(g).rho() / l(g).n() - 0.5 / p("tau")).powi(2)),
        "simpo" => each(&|g, _| ce(beta() * (w(g).a() / w(g).n() - l(g).a() / l(g).n()) - p("simpo_gamma"), 1.0 - e())),
        "alpha_po" => each(&|g, _| {
            let alpha = p("alpha");
            let r = |s: &Sequence| (1.0 - (-alpha * s.a() / s.n()).exp()) / alpha;
            ce(beta() * (r(&g[0]) - r(&g[1])) - p("simpo_gamma"), 1.0 - e())
        }),
        "rpo" => each(&|g, _| sp(-u(g)) - p("eta") * beta() * w(g).a()),
        "dpo_nll" => each(&|g, _| sp(-u(g)) - p("lambda") * w(g).a() / w(g).n()),
        "upo_nll" => each(&|g, _| ce(u(g), g[0].values[0]) - p("lambda") * w(g).a() / g[0].values[1].abs()),
        "cpo" => each(&|g, _| ce(beta() * (w(g).a() - l(g).a()), 1.0 - e())) + p("cpo_alpha") * token_mean(0),
        "slic_hf" => each(&|g, _| (p("delta") - w(g).a() + l(g).a()).max(0.0) - p("lambda") * w(g).a()),
        "orpo" | "rationale_orpo" => each(&|g, _| {
            let (x, y) = (w(g).a() / w(g).n(), l(g).a() / l(g).n());
            let o = (x - y) - ((1.0 - x.exp()).ln() - (1.0 - y.exp()).ln());
            let rationale = if name == "orpo" { 0.0 } else { p("gamma") * g[2].a() / g[2].n() };
            -x + p("lambda") * sp(-o) - rationale
        }),
        "rationale_dpo" => each(&|g, _| sp(-u(g)) - p("gamma") * g[2].a()),
        "rationale_dpo_repo" => each(&|g, _| sp(-u(g)) + sp(-p("gamma") * g[2].a())),
        "tdpo1" => each(&|g, _| sp(-beta() * (h(g) + w(g).kl() - l(g).kl()))),
        "tdpo2" => each(&|g, f| sp(-beta() * (h(g) - p("alpha") * (l(g).kl() - w(f).kl())))),
        "mapo" | "sparse_po" | "sparse_po_independent" => each(&|g, _| {
            let sum = |f: fn(&Sequence) -> f64| f(&g[0]) + f(&g[1]);
            sp(-beta() * (w(g).masked() - l(g).masked()))
                + p("l1_reward") * sum(|s| s.mu.iter().sum())
                + p("l1_divergence") * sum(|s| s.md.iter().sum())
        }),
        "sppo_hard" => each(&|g, _| (w(g).rho() - 0.5 / beta()).powi(2) + (l(g).rho() + 0.5 / beta()).powi(2)),
        "sppo_soft" => each(&|g, _| {
            let off = |s: &Sequence| s.rho() - (s.values[0] - 0.5) / beta();
            (off(&g[0]).powi(2) + off(&g[1]).powi(2)) / 2.0
        }),
        "sppo_single" => each(&|g, _| {
            let target = (g[0].values[0] - 0.5) / beta();
            ((w(g).rho() - target).powi(2) + (l(g).rho() + target).powi(2)) / 2.0
        }),
        "gpo" => each(&|g, _| {
            let off = |s: &Sequence| s.rho() - s.values[0] / beta();
            (off(&g[0]).powi(2) + off(&g[1]).powi(2)) / 2.0
        }),
        "nca_pair" => each(&|g, _| {
            let (x, y) = (beta() * w(g).rho(), beta() * l(g).rho());
            sp(-x) + sp(x) / 2.0 + sp(y) / 2.0
        }),
        "bco_pair" => each(&|g, _| sp(p("delta") - beta() * w(g).rho()) + sp(beta() * l(g).rho() - p("delta"))),
        "apo_zero" => each(&|g, _| 1.0 - sig(beta() * w(g).rho()) + sig(beta() * l(g).rho())),
        "apo_down" => each(&|g, _| sig(beta() * w(g).rho()) + 1.0 - sig(u(g))),
        "kto" => {
            let z0 = mean(fixed.iter().map(|g| g[1].rho())).max(0.0);
            each(&|g, _| {
                let v = beta() * (g[0].rho() - z0);
                match g[0].values[0] > 0.0 {
                    true => p("desirable_weight") * (1.0 - sig(v)),
                    false => p("undesirable_weight") * (1.0 - sig(-v)),
                }
            })
        }
        "apo_zero_unpaired" => each(&|g, _| sig(if g[0].values[0] > 0.0 { -1.0 } else { 1.0 } * beta() * g[0].rho())),
        "bco" => {
            let delta = mean(fixed.iter().map(|g| beta() * g[0].rho()));
            each(&|g, _| {
                let v = beta() * g[0].rho() - delta;
                if g[0].values[0] > 0.0 { p("desirable_weight") * sp(-v) } else { p("undesirable_weight") * sp(v) }
            })
        }
        "aot" | "aot_unpaired" => {
            let [a, b]: [fn(&[Sequence]) -> f64; 2] = match name {
                "aot" => [|g| g[0].a() - g[1].a(), |g| (g[0].a() - g[0].rho()) - (g[1].a() - g[1].rho())],
                _ => [|g| g[0].rho(), |g| g[1].rho()],
            };
            let all = |f: fn(&[Sequence]) -> f64| sorted(groups.iter().map(|g| f(g)).collect());
            mean(all(a).iter().zip(all(b)).map(|(a, b)| ce(beta() * (a - b), 1.0 - e())))
        }
        "maxmin" => {
            let label = |g: &Vec<Sequence>| g[0].values[0] as i64;
            let of = |wanted: i64| mean(groups.iter().filter(|g| label(g) == wanted).map(|g| sp(-u(g))));
            groups.iter().map(|g| of(label(g))).fold(f64::NEG_INFINITY, f64::max)
        }
        "sft" => token_mean(0),
        "sft_mean" => each(&|g, _| -g[0].a() / g[0].n()),
        "rwr" => each(&|g, _| -(g[0].values[0] / p("temperature")).exp().min(p("clip")) * g[0].a() / g[0].n()),
        "unlikelihood" => each(&|g, _| {
            let others: f64 = g[1].lp.iter().map(|lp| (1.0 - lp.exp()).ln()).sum();
            -g[0].a() / g[0].n() - p("alpha") / g[1].n() * others
        }),
        "control_sft" | "hindsight_sft" => {
            let all = || groups.iter().flatten();
            -all().map(Sequence::a).sum::<f64>() / all().map(Sequence::n).sum::<f64>()
        }
        "hypo" => each(&|g, f| p("lambda") * f[0].rho() * g[0].a()),
        "tpo" | "infonca" | "nca" | "exo" => each(&|g, f| list(name, p, g, f)),
        _ => f64::NAN,
    }
}

fn list(name: &str, p: &dyn Fn(&str) -> f64, group: &[Sequence], fixed: &[Sequence]) -> f64 {
    let rewards = |group: &[Sequence]| -> Vec<f64> { group.iter().map(|s| p("beta") * s.rho()).collect() };
    let s = rewards(group);
    let v: Vec<f64> = group.iter().map(|s| s.values[0]).collect();
    let hard = group[0].values[1] != 0.0;
    let y = || match hard {
        true => shares(&v),
        false => softmax(&v.iter().map(|v| v / p("temperature")).collect::<Vec<_>>()),
    };
    let k = s.len() as f64;
    match name {
        "tpo" => {
            let now = rewards(fixed);
            let rank = |i: usize| 1.0 + now.iter().filter(|&&other| other > now[i]).count() as f64;
            let mut sum = 0.0;
            for i in 0..s.len() {
                for j in (0..s.len()).filter(|&j| v[i] > v[j]) {
                    let gain = (v[i].exp2() - v[j].exp2()).abs();
                    sum += gain * (1.0 / (1.0 + rank(i)).ln() - 1.0 / (1.0 + rank(j)).ln()).abs() * sp(s[j] - s[i]);
                }
            }
            sum
        }
        "infonca" => -y().iter().zip(softmax(&s)).map(|(y, q): (&f64, f64)| y * q.ln()).sum::<f64>(),
        "nca" => s.iter().zip(y()).map(|(s, y): (&f64, f64)| sp(*s) / k + y * sp(-s)).sum(),
        _ => softmax(&s).iter().zip(y()).map(|(q, y): (&f64, f64)| q * (q.ln() - y.ln())).sum(),
    }
}

fn shares(labels: &[f64]) -> Vec<f64> {
    let sum: f64 = labels.iter().sum();
    labels.iter().map(|label| label / sum).collect()
}
