from workers.storage.worker import main

main()
