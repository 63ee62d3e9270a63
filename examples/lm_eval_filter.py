"""lm-evaluation-harness: `filter_fn: !function my_task.retrm_best_of_n`, before the regex that reads answers."""

from retrm.adapters.lm_eval import best_of_n_by

retrm_best_of_n = best_of_n_by(lambda doc: doc["question"])
answers = [["So the answer is 7.", "8"], ["4", "It is 5."]]
print(retrm_best_of_n(answers, [{"question": "What is 3 + 4?"}, {"question": "What is 2 + 2?"}]))
