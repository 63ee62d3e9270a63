"""its_hub: BestOfN(RetrmOutcome()) keeps the best of N answers; ParticleFiltering takes RetrmProcess()."""

from its_hub.api import ChatMessage

from retrm.adapters.its_hub import RetrmOutcome, RetrmProcess

asked = ChatMessage("user", "What is 3 + 4?")
answers = [[asked, ChatMessage("assistant", text)] for text in ("7", "It is 8, I think.")]
print(RetrmOutcome().score(answers))
print(RetrmProcess().score("What is 3 + 4?", ["First, add 3", "First, guess"]))
