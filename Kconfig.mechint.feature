menuconfig KNLP_MECHINT_FEATURE
	bool "Circuits of features"
	default n
	help
	  Finds the fewest latents of sparse autoencoders that still do what the whole model does. At every site with
	  a dictionary, what it does not explain (its error) is a unit like the others, and the report says how much
	  of the circuit is the errors' work. Controls are those of every circuit.

if KNLP_MECHINT_FEATURE

config KNLP_MECHINT_FEATURE_DICTIONARIES
	string "Dictionaries"
	default ""
	help
	  Directory of a finished analysis of sparse autoencoders, or of dictionaries of SAELens. Empty takes those
	  that this experiment trains (switch sparse autoencoders on).

config KNLP_MECHINT_FEATURE_CHOOSE
	string "Which of them"
	default ""
	help
	  Names of dictionaries or shell patterns, separated by commas, one dictionary for each site; such as
	  *-batch_topk-k8-x4-s0. Empty takes of each site the one that loses the model least.

config KNLP_MECHINT_FEATURE_FLATTEN
	string "Axes of a site that has several"
	default "all"
	help
	  How the axes of the sites are read where a dictionary of another library does not say: all at once, last
	  (every head or channel apart, by one dictionary) or unit:5 (that one alone).

config KNLP_MECHINT_FEATURE_EXCLUDE
	string "Tokens left out"
	default "bos,boundary,padding"
	help
	  Kinds of token left out where dictionaries of the control are trained and where features are read: bos,
	  boundary, padding, separated by commas.

config KNLP_MECHINT_FEATURE_CONTROL_TOKENS
	int "Activations for the dictionaries of the control"
	default 200000
	range 0 1000000000
	help
	  The control on random weights has dictionaries of its own, as wide and as sparse, trained on this many
	  activations: those of another model would leave all to the errors. 0 leaves this control out.

	  Range: 0 to 1000000000 activations.

config KNLP_MECHINT_FEATURE_READ
	int "Latents to read"
	default 64
	range 0 100000
	help
	  Latents of the circuit, of the highest attribution, whose strongest contexts and raised tokens are in the
	  report. 0 reads none.

	  Range: 0 to 100000 latents.

choice KNLP_MECHINT_FEATURE_ABLATION
	prompt "Ablation"
	default KNLP_MECHINT_FEATURE_ABLATION_MEAN
	help
	  What replaces a dropped unit. Circuits found with different ablations are not comparable in size; the
	  report names the one used.

config KNLP_MECHINT_FEATURE_ABLATION_MEAN
	bool "Mean"
	help
	  The unit's mean over prompts at the same position: takes away what differs between prompts.

config KNLP_MECHINT_FEATURE_ABLATION_RESAMPLE
	bool "Another prompt's value"
	help
	  The unit's value on another prompt: stays among values the model really has.

config KNLP_MECHINT_FEATURE_ABLATION_COUNTERFACTUAL
	bool "The counterfactual twin's value"
	help
	  The unit's value on the prompt's twin, which asks the same and has another answer. Needs a task with
	  twins; text has none.

config KNLP_MECHINT_FEATURE_ABLATION_ZERO
	bool "Zero"
	help
	  Zero: simple, and often far from any value the model has. For comparison with other work.

endchoice

choice KNLP_MECHINT_FEATURE_METRIC
	prompt "Metric"
	default KNLP_MECHINT_FEATURE_METRIC_KL
	help
	  What the circuit must preserve. KL to the full model needs no answers and asks for the most.

config KNLP_MECHINT_FEATURE_METRIC_KL
	bool "KL to the full model"
	help
	  Divergence from the full model's prediction at the answer positions, or at all positions of text.

config KNLP_MECHINT_FEATURE_METRIC_LOGIT_DIFF
	bool "Logit difference"
	help
	  The answer's logit less the twin's answer's. Needs a task with twins; text has none.

config KNLP_MECHINT_FEATURE_METRIC_ANSWER_LOGPROB
	bool "Log-probability of the answer"
	help
	  Log-probability that the model gives to the answer. Needs a task with answers.

config KNLP_MECHINT_FEATURE_METRIC_LOSS
	bool "Loss"
	help
	  Cross-entropy of the answers, or of every next token of text.

endchoice

choice KNLP_MECHINT_FEATURE_SEARCH
	prompt "Search"
	default KNLP_MECHINT_FEATURE_SEARCH_SMALLEST
	help
	  Find a circuit as small as can be that reaches a faithfulness, or the best of a given size.

config KNLP_MECHINT_FEATURE_SEARCH_SMALLEST
	bool "Smallest circuit that is faithful enough"
	help
	  Finds the fewest units that reach the target faithfulness on the discovery prompts. Choose it first.

config KNLP_MECHINT_FEATURE_SEARCH_BUDGET
	bool "Best circuit of exactly the budget's size"
	help
	  Keeps exactly as many units as the budget says. Choose it to compare checkpoints at equal size.

endchoice

config KNLP_MECHINT_FEATURE_BUDGET
	int "Budget"
	default 16
	range 1 10000000
	depends on KNLP_MECHINT_FEATURE_SEARCH_BUDGET
	help
	  Units the circuit keeps, exactly. More than the model has is an error.

	  Range: 1 to 10000000 units.

config KNLP_MECHINT_FEATURE_TARGET_FAITHFULNESS
	string "Target faithfulness"
	default "0.95"
	depends on KNLP_MECHINT_FEATURE_SEARCH_SMALLEST
	help
	  Faithfulness the smallest circuit must reach on the discovery prompts: 1 is the full model's metric,
	  0 that of the model with everything dropped. 0.95 is a strict choice, 0.8 a loose one.

	  Range: 0.05 to 0.999.

choice KNLP_MECHINT_FEATURE_GATE
	prompt "Gate"
	default KNLP_MECHINT_FEATURE_GATE_HARD_CONCRETE
	help
	  How a gate that is open or shut is learned by gradients. Choose hard-concrete unless you compare.

config KNLP_MECHINT_FEATURE_GATE_HARD_CONCRETE
	bool "Hard-concrete"
	help
	  Stretched, clipped and noisy sigmoids (Louizos et al. 2018): gates reach exactly 0 and 1.

config KNLP_MECHINT_FEATURE_GATE_STRAIGHT_THROUGH
	bool "Straight-through"
	help
	  Hard gates forward, the sigmoid's gradient backward.

endchoice

config KNLP_MECHINT_FEATURE_STEPS
	int "Steps of a search"
	default 100
	range 10 100000
	help
	  Optimiser steps of one search. 60 is enough for a first look at a 130M model on a CPU.

	  Range: 10 to 100000 steps.

config KNLP_MECHINT_FEATURE_LR
	string "Learning rate of the gates"
	default "0.1"
	help
	  Learning rate of the gates' logits. Take less when the curves of the search jump.

	  Range: 1e-05 to 10.

config KNLP_MECHINT_FEATURE_PROMPTS
	int "Discovery prompts"
	default 256
	range 2 1000000
	help
	  Discovery prompts: what the search sees. Too few, and the circuit fits them alone.

	  Range: 2 to 1000000 prompts.

config KNLP_MECHINT_FEATURE_EVAL_PROMPTS
	int "Held-out prompts"
	default 256
	range 2 1000000
	help
	  Held-out prompts that every reported number is measured on. More make the intervals narrower.

	  Range: 2 to 1000000 prompts.

config KNLP_MECHINT_FEATURE_SEEDS
	int "Seeds"
	default 3
	range 1 100
	help
	  Searches with different seeds, for the stability of the circuit. Use 3 or more for a claim.

	  Range: 1 to 100 searches.

config KNLP_MECHINT_FEATURE_RANDOM_CIRCUITS
	int "Random circuits"
	default 20
	range 2 10000
	help
	  Random circuits of the same size and sites, for the control band that a real circuit must leave behind.

	  Range: 2 to 10000 circuits.

config KNLP_MECHINT_FEATURE_REMOVED_UNITS
	int "Units removed one at a time"
	default 64
	range 0 1000000
	help
	  Units of the circuit that are removed one at a time, to see whether it needs them; of more, as many at random; 0
	  for none.

	  Range: 0 to 1000000 units.

config KNLP_MECHINT_FEATURE_BOOTSTRAP
	int "Bootstrap draws"
	default 1000
	range 100 100000
	help
	  Bootstrap draws of every interval. Take at least 1000 for what you publish.

	  Range: 100 to 100000 draws.

config KNLP_MECHINT_FEATURE_MIN_ACCURACY
	string "Least accuracy of the model"
	default "0.5"
	help
	  Accuracy below which the model has no circuit for the task and the analysis is refused; not used for
	  text. 0 never refuses.

	  Range: 0 to 1.

endif
