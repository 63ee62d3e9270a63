"""The client alone: httpx and nothing else. RETRM_URL names the server, RETRM_TOKEN holds its key."""

from retrm.service.client import RewardClient

with RewardClient() as client:
    rewards = client.score("What is 3 + 4?", ["7", "It is 8, I think."])
    print([reward.score for reward in rewards])
    print(client.best_of_n("What is 3 + 4?", ["7", "It is 8, I think."]).text)
